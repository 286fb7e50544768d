package config

import (
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/replica"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/restore/check"
	"github.com/slashacom/slasha-init/supervisor"
)

// envPrefix and a setting's name make the name of its variable.
const envPrefix = "SLASHA_"

// setting is a flag, and the variable of the same name. To add one, add an entry to
// settings, with a reader from read.go where one fits.
type setting struct {
	name     string
	value    string // default
	usage    string // what it means; a word in `back quotes` names the value
	secret   bool   // it is never printed, and can come from a file that its _FILE variable names
	fallback string // another variable, looked up last
	bare     string // value of the flag when it is given without one, like "true"

	// backup marks what has no effect where backups are off, and does not turn them on
	// either: a platform may set it for all of its apps.
	backup bool

	by   commands
	read reader
}

func (s setting) variable() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// fileVariable names the file of a secret.
func (s setting) fileVariable() string { return s.variable() + "_FILE" }

// reader judges the value of a setting and stores it in the Config of the reading. It
// reports what is wrong as problems. It is called once, in the order of the table, so
// it can rely on settings above its own.
type reader func(*reading, given)

// commands are those that take a setting as a flag, and those of them that judge it. A
// command that asks the running container takes the flags of run, so that both can be
// given the same flags; it leaves most of them for run to judge.
type commands struct{ take, judge []string }

// restoreNow stands for the command restore with --now: it asks the running container.
const restoreNow = "restore --now"

var (
	every = []string{"run", "restore", "healthcheck", "status", "sync"}

	all         = commands{take: every, judge: append([]string{restoreNow}, every...)}
	ofReplica   = commands{take: every, judge: []string{"run", "restore"}}
	ofApp       = commands{take: every, judge: []string{"run"}}
	onlyRun     = commands{take: []string{"run"}, judge: []string{"run"}}
	onlyRestore = commands{take: []string{"restore"}, judge: []string{"restore"}}
	bothRestore = commands{take: []string{"restore"}, judge: []string{"restore", restoreNow}}
	onlySync    = commands{take: []string{"sync"}, judge: []string{"sync"}}
	onlyStatus  = commands{take: []string{"status"}, judge: []string{"status"}}
)

const day = 24 * time.Hour

// shortestTTL of a lease leaves a renewal time for a few tries.
const shortestTTL = 3 * time.Second

// settings is every setting there is, in the order in which help shows them.
var settings = []setting{
	{name: "db-path", usage: "absolute `path` of the SQLite database",
		by: all, read: readDBPath},
	{name: "bucket", usage: "bucket `name`",
		by: ofReplica, read: readBucket},
	{name: "endpoint", usage: "`address` of an S3-compatible service, or file:///dir for a local folder (default Amazon S3)",
		by: ofReplica, read: readEndpoint},
	{name: "access-key-id", secret: true, fallback: "LITESTREAM_ACCESS_KEY_ID", usage: "access key `id`; then LITESTREAM_ACCESS_KEY_ID, then the AWS SDK's own chain",
		by: ofReplica, read: key(func(c *Config) *string { return &c.Replica.Storage.AccessKeyID })},
	{name: "secret-access-key", secret: true, fallback: "LITESTREAM_SECRET_ACCESS_KEY", usage: "secret access `key`; better set as a variable or a _FILE than as a flag",
		by: ofReplica, read: key(func(c *Config) *string { return &c.Replica.Storage.SecretAccessKey })},
	{name: "path-prefix", value: "litestream", usage: "`folder` inside the bucket",
		by: ofReplica, backup: true, read: readPrefix},
	{name: "region", usage: "bucket's `region` (default from the endpoint, else as the server answers)",
		by: ofReplica, backup: true, read: readRegion},
	{name: "restore-pending", value: "false", usage: "restore over the existing database, once: true (once for each container), or an `id` of the request",
		by: onlyRun, read: readRequest},
	{name: "restore-timestamp", usage: "a restore leads to the state at this `time`, as RFC 3339 (default the newest)",
		by: onlyRun, backup: true, read: moment(func(c *Config) *time.Time { return &c.Restore.Timestamp })},
	{name: "on-stale", value: "restore", usage: "what to do with a stale database, which lacks what the replica has: set it aside and `restore` the newest state, or fail",
		by: onlyRun, backup: true, read: word("must be restore, to set a stale database aside and restore the newest state, or fail",
			map[string]restore.OnStale{"restore": restore.RestoreStale, "fail": restore.FailStale},
			func(c *Config) *restore.OnStale { return &c.Restore.OnStale })},
	{name: "restore-check", value: "quick", usage: "how a restored database is checked: `quick`, full or off",
		by: ofReplica, backup: true, read: word("must be quick, full or off",
			map[string]check.Kind{"quick": check.Quick, "full": check.Full, "off": check.Off},
			func(c *Config) *check.Kind { return &c.Restore.Check })},
	{name: "sync-interval", value: "500ms", usage: "least `time` between the uploads of a steady writer",
		by: ofReplica, backup: true, read: duration(time.Hour, func(c *Config) *time.Duration { return &c.Replicate.SyncInterval })},
	{name: "max-lag", value: "10s", usage: "/healthz turns unhealthy when commits wait for longer than this `time`",
		by: ofReplica, backup: true, read: duration(day, func(c *Config) *time.Duration { return &c.Health.MaxLag })},
	{name: "snapshot-interval", value: "24h", usage: "`time` between full snapshots",
		by: ofReplica, backup: true, read: duration(31*day, func(c *Config) *time.Duration { return &c.Replicate.SnapshotInterval })},
	{name: "retention", value: "168h", usage: "how far back in `time` the replica can restore",
		by: ofReplica, backup: true, read: duration(100*365*day, func(c *Config) *time.Duration { return &c.Replicate.Retention })},
	{name: "verify-interval", value: "off", usage: "restore the replica to a scratch file this `often` and check it, or off",
		by: onlyRun, backup: true, read: orNo(duration(100*day, func(c *Config) *time.Duration { return &c.Verify }))},
	{name: "process-type", value: "web", usage: "what COMMAND is, or which of the Procfile's types runs: web, worker, ...",
		by: ofApp, read: readProcessType},
	{name: "procfile", usage: "run the processes of this `file` instead of COMMAND, one \"type: command\" a line",
		by: onlyRun, read: readProcfile},
	{name: "formation", usage: "how many of each type, like `web=1,worker=2` (default one of each)",
		by: onlyRun, read: readFormation},
	{name: "log-prefix", bare: "true", usage: "put the process's name before each line that it writes",
		by: onlyRun, read: yesOrNo(func(c *Config) *bool { return &c.Processes.LogPrefix })},
	{name: "user", usage: "run the app as this `user`: a name, uid, uid:gid or name:group",
		by: onlyRun, read: readUser},
	{name: "no-new-privs", bare: "true", usage: "keep the app from gaining privileges by setuid programs",
		by: onlyRun, read: yesOrNo(func(c *Config) *bool { return &c.Processes.NoNewPrivs })},
	{name: "signal-scope", value: "group", usage: "who gets signals: `group`, all that the command started, or child, the command alone",
		by: onlyRun, read: word("must be group, for all that the command started too, or child, for the command alone",
			map[string]supervisor.Scope{"group": supervisor.Group, "child": supervisor.Child},
			func(c *Config) *supervisor.Scope { return &c.Processes.Scope })},
	{name: "stop-signal", usage: "`signal` that stops the app (default the one that came, or TERM)",
		by: onlyRun, read: signal(func(c *Config) *syscall.Signal { return &c.Processes.StopSignal })},
	{name: "lease", value: "auto", usage: "the lock in the bucket that keeps out instances on other volumes: `auto`, required or off",
		by: onlyRun, backup: true, read: word("must be auto, required or off",
			map[string]replica.Mode{"auto": replica.Auto, "required": replica.Required, "off": replica.Off},
			func(c *Config) *replica.Mode { return &c.Replica.Lease })},
	{name: "lease-ttl", value: "60s", usage: "`time` from a crashed host's last sign of life to the end of its lease",
		by: onlyRun, backup: true, read: readTTL},
	{name: "lock-timeout", value: "90s", usage: "how much `time` to wait for another instance to leave the volume or the bucket",
		by: onlyRun, read: duration(day, func(c *Config) *time.Duration { return &c.LockTimeout },
			func(c *Config) *time.Duration { return &c.Replica.Patience })},
	{name: "stop-timeout", value: "9s", usage: "`time` for a whole stop, the app and the last upload",
		by: ofReplica, read: duration(day, func(c *Config) *time.Duration { return &c.StopTimeout })},
	{name: "kill-on-parent-death", bare: "TERM", usage: "stop when the parent process dies, as if this `signal` had come (without a value TERM)",
		by: onlyRun, read: readParentDeath},
	{name: "health-addr", value: ":9180", usage: "`address` of the health page; port 0 takes a free one, off serves none",
		by: all, read: readHealthAddr},
	{name: "control-socket", usage: "`path` of the socket for sync and restore --now, or off (default in our folder beside the database)",
		by: all, read: readControlSocket},
	{name: "log-format", value: "text", usage: "`format` of our own log: text or json",
		by: ofReplica, read: word("must be text or json",
			map[string]string{"text": "text", "json": "json"},
			func(c *Config) *string { return &c.Log.Format })},
	{name: "log-level", value: "info", usage: "least `level` of our own log: debug, info, warn or error",
		by: ofReplica, read: word("must be debug, info, warn or error",
			map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError},
			func(c *Config) *slog.Level { return &c.Log.Level })},

	{name: "now", bare: "true", usage: "restore in the running container: the app is stopped and started again",
		by: bothRestore, read: yesOrNo(func(c *Config) *bool { return &c.Ask.Now })},
	{name: "output", usage: "restore to this `path`, where nothing is yet (default --db-path)",
		by: onlyRestore, read: readOutput},
	{name: "timestamp", usage: "restore the state at this `time`, as RFC 3339",
		by: bothRestore, read: moment(func(c *Config) *time.Time { return &c.Ask.Timestamp })},
	{name: "txid", usage: "restore the state after this transaction `id`, 16 hex digits",
		by: onlyRestore, read: readTXID},
	{name: "timeout", value: "30s", usage: "how much `time` to wait",
		by: onlySync, read: duration(day, func(c *Config) *time.Duration { return &c.Ask.Timeout })},
	{name: "json", bare: "true", usage: "print the status as JSON",
		by: onlyStatus, read: yesOrNo(func(c *Config) *bool { return &c.Ask.JSON })},
}
