package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/replica/storage"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/restore/check"
)

// Config is what the flags and the environment ask for, judged. Its fields have
// the flags' names; see options for their meanings.
type Config struct {
	Processes Processes

	// Idle are the settings of backups that were made, where backups are off.
	Idle []string

	DBPath          string
	Bucket          string
	Endpoint        storage.Endpoint
	AccessKeyID     string
	SecretAccessKey string
	PathPrefix      string
	Region          string

	RestoreRequest   string    // "" asks for no restore over an existing database
	RestoreTimestamp time.Time // zero for the newest state
	RestoreCheck     check.Kind
	OnStale          restore.OnStale

	SyncInterval     time.Duration
	MaxLag           time.Duration
	SnapshotInterval time.Duration
	Retention        time.Duration
	VerifyInterval   time.Duration // 0: never
	Lease            LeaseMode
	LeaseTTL         time.Duration
	LockTimeout      time.Duration
	StopTimeout      time.Duration

	HealthAddr    string // "" serves nothing
	ControlSocket string // "" serves nothing
	Log           logs.Config

	// Of single commands.
	Output    string
	Timestamp time.Time
	TXID      ltx.TXID
	Now       bool
	Timeout   time.Duration
	JSON      bool
}

// LeaseMode is what to do about the lease in the bucket.
type LeaseMode int

// The modes.
const (
	LeaseAuto     LeaseMode = iota // where it can be had
	LeaseRequired                  // nothing is started without it
	LeaseOff
)

// shortestTTL leaves a renewal time for a few tries.
const shortestTTL = 3 * time.Second

// Enabled reports whether backups are on. When they are off, the app is only
// supervised.
func (c Config) Enabled() bool { return c.DBPath != "" }

// StateDir is our own folder beside the database.
func (c Config) StateDir() string {
	dir, name := filepath.Split(c.DBPath)
	return filepath.Join(dir, "."+name+".slasha")
}

// defaultSocket is where the instance that leads is asked.
func (c Config) defaultSocket() string { return filepath.Join(c.StateDir(), "control.sock") }

// Secrets lists what must never be printed.
func (c Config) Secrets() []string { return []string{c.SecretAccessKey, c.AccessKeyID} }

// Storage is what the replica's client gets.
func (c Config) Storage() storage.Config {
	return storage.Config{
		Endpoint:        c.Endpoint,
		Bucket:          c.Bucket,
		Prefix:          c.PathPrefix,
		AccessKeyID:     c.AccessKeyID,
		SecretAccessKey: c.SecretAccessKey,
		Region:          c.Region,
	}
}

// configError is all that is wrong with what was asked for.
type configError struct {
	problems []problem
	usage    bool // a flag is wrong, as opposed to a value
	secrets  []string
}

func (e *configError) Error() string {
	lines := make([]string, len(e.problems))
	for i, p := range e.problems {
		lines[i] = "slasha-init: " + logs.Redact(p.String(), e.secrets)
	}
	return strings.Join(lines, "\n")
}

// Parse reads the arguments and the environment of a command and judges every
// value. It makes no request and changes nothing. The error is pflag.ErrHelp,
// or a *configError that tells all problems at once.
func Parse(command string, args, environ []string) (Config, error) {
	src := &source{command: command, flags: flagSet(command), env: make(map[string]string)}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			src.env[name] = value
		}
	}
	rest, wrong, err := parseFlags(src.flags, args)
	if err != nil {
		return Config{}, err
	}
	var cfg Config
	cfg.read(src, rest, environ)
	usage := len(wrong) > 0
	if !usage {
		wrong = src.checkArguments(rest)
		usage = len(wrong) > 0
	}
	if wrong = append(wrong, src.problems...); len(wrong) > 0 {
		return Config{}, &configError{problems: wrong, usage: usage, secrets: cfg.Secrets()}
	}
	return cfg, nil
}

// checkArguments judges what follows the flags.
func (s *source) checkArguments(rest []string) []problem {
	dash := s.flags.ArgsLenAtDash() == 0
	procfile := s.command == "run" && s.get("procfile").value != ""
	switch {
	case s.command != "run" && len(rest) > 0:
		return []problem{{where: s.command, value: quote(rest[0]), want: "takes no arguments, only flags"}}
	case s.command != "run":
	case len(rest) > 0 && procfile:
		return []problem{{where: "COMMAND", value: quote(rest[0]), want: "can't be used together with --procfile; leave one out"}}
	case len(rest) > 0 && !dash:
		return []problem{{where: "COMMAND", value: quote(rest[0]), want: "must stand behind --, like: slasha-init -- /app serve"}}
	case len(rest) == 0 && !procfile:
		return []problem{{where: "COMMAND", want: "is missing; write it after --, like: slasha-init -- /app serve"}}
	}
	return nil
}

// read fills in and judges the configuration, in the order of the options.
func (c *Config) read(s *source, command, environ []string) {
	c.HealthAddr = s.healthAddr()
	switch s.command {
	case "healthcheck", "status", "sync", "restore":
		c.Now = s.command == "restore" && s.yes("now")
		if s.command == "restore" && !c.Now {
			break
		}
		// They only ask the container that runs: what else is set is for run to
		// judge.
		c.readAsking(s)
		return
	}
	c.readReplica(s)
	c.ControlSocket = s.controlSocket(c.DBPath)
	for _, d := range []struct {
		name string
		to   *time.Duration
		most time.Duration
	}{
		{"sync-interval", &c.SyncInterval, time.Hour},
		{"max-lag", &c.MaxLag, 24 * time.Hour},
		{"snapshot-interval", &c.SnapshotInterval, 31 * 24 * time.Hour},
		{"retention", &c.Retention, 100 * 365 * 24 * time.Hour},
		{"stop-timeout", &c.StopTimeout, 24 * time.Hour},
	} {
		*d.to = s.duration(d.name, d.most)
	}
	c.RestoreCheck = choose(s, "restore-check", "must be quick, full or off",
		map[string]check.Kind{"quick": check.Quick, "full": check.Full, "off": check.Off})
	c.readLog(s)
	if s.command == "run" {
		c.RestoreRequest = c.readRequest(s)
		c.RestoreTimestamp = s.time("restore-timestamp")
		c.OnStale = choose(s, "on-stale", "must be restore, to set a stale database aside and restore the newest state, or fail",
			map[string]restore.OnStale{"restore": restore.RestoreStale, "fail": restore.FailStale})
		c.Lease = choose(s, "lease", "must be auto, required or off",
			map[string]LeaseMode{"auto": LeaseAuto, "required": LeaseRequired, "off": LeaseOff})
		c.LeaseTTL = s.duration("lease-ttl", time.Hour)
		if c.LeaseTTL > 0 && c.LeaseTTL < shortestTTL {
			s.complain(option{name: "lease-ttl"}, s.get("lease-ttl"), fmt.Sprintf("must be at least %s: a renewal is a request, and may have to be made again", shortestTTL))
		}
		c.LockTimeout = s.duration("lock-timeout", 24*time.Hour)
		if !no(s.get("verify-interval").value) {
			c.VerifyInterval = s.duration("verify-interval", 100*24*time.Hour)
		}
		c.readProcesses(s, command, appEnviron(environ))
	}
	if s.command == "restore" {
		c.readRestore(s)
	}
	slices.SortFunc(s.problems, func(a, b problem) int { return strings.Compare(a.where, b.where) })
}

// pageless reports whether nobody can know where the health page is, from outside the
// container's own process: it is off, or on a port that was free.
func (c Config) pageless() bool {
	_, port, err := net.SplitHostPort(c.HealthAddr)
	return c.HealthAddr == "" || err == nil && port == "0"
}

// readAsking reads what a command that asks a running container needs to know.
func (c *Config) readAsking(s *source) {
	page := s.command == "healthcheck" || s.command == "status"
	if !page || c.pageless() {
		c.readSocket(s)
	}
	switch s.command {
	case "status":
		c.JSON = s.yes("json")
	case "sync":
		c.Timeout = s.duration("timeout", 24*time.Hour)
	case "restore":
		c.Timestamp = s.time("timestamp")
		for _, name := range []string{"output", "txid"} {
			if set := s.get(name); set.value != "" {
				s.complain(option{name: name}, set, "can't be used together with --now; leave one out")
			}
		}
	}
}

// readSocket reads on which socket a container is asked.
func (c *Config) readSocket(s *source) {
	c.DBPath = s.dbPath(s.get("db-path"))
	c.ControlSocket = s.controlSocket(c.DBPath)
	switch {
	case c.ControlSocket != "" || len(s.problems) > 0:
	case s.get("control-socket").value != "":
		s.complain(option{name: "control-socket"}, s.get("control-socket"), "leaves nothing to ask; name the socket of the container that runs")
	default:
		s.complain(option{name: "db-path"}, setting{}, "is not set; set it, or --control-socket, to say which container to ask")
	}
}

// controlSocket reads where the socket is: by default in our folder beside the
// database, so without one there is none.
func (s *source) controlSocket(dbPath string) string {
	set, o := s.get("control-socket"), option{name: "control-socket"}
	switch {
	case set.value == "off":
		return ""
	case set.value == "" && dbPath == "":
		return ""
	case set.value == "":
		return Config{DBPath: dbPath}.defaultSocket()
	case strings.ContainsFunc(set.value, isControl):
		s.complain(o, set, "holds a control character")
	case !filepath.IsAbs(set.value) || strings.HasSuffix(set.value, "/"):
		s.complain(o, set, "must be the absolute path of a socket, like /run/slasha.sock, or off")
	default:
		if fi, err := os.Stat(filepath.Dir(set.value)); err != nil || !fi.IsDir() {
			s.complain(o, set, "is in a folder that is not there; make it, or leave the setting out")
		}
	}
	return filepath.Clean(set.value)
}

const (
	lowercase = "abcdefghijklmnopqrstuvwxyz0123456789"
	anyCase   = lowercase + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isBucketName: the rules of all providers together, not only those of S3 today.
func isBucketName(name string) bool {
	return len(name) >= 3 && len(name) <= 255 && strings.Trim(name, anyCase+"._-") == "" &&
		strings.Trim(name[:1]+name[len(name)-1:], anyCase) == "" && !strings.Contains(name, "..")
}

func isRegionName(name string) bool {
	return len(name) >= 2 && len(name) <= 64 && strings.Trim(name, lowercase+"-") == ""
}

// ofBackups are settings that mean nothing without backups. Alone they ask for none: a
// platform may set them for all of its apps.
var ofBackups = []string{
	"path-prefix", "region", "restore-timestamp", "on-stale", "restore-check", "sync-interval", "max-lag",
	"snapshot-interval", "retention", "lease", "lease-ttl", "verify-interval",
}

// readReplica reads what says which database goes where. Either all of it is
// there or none: half of it must not become a run without backups.
func (c *Config) readReplica(s *source) {
	db, bucket, endpoint := s.get("db-path"), s.get("bucket"), s.get("endpoint")
	id, key := s.get("access-key-id"), s.get("secret-access-key")
	prefix, region := s.get("path-prefix"), s.get("region")
	c.AccessKeyID, c.SecretAccessKey = id.value, key.value

	var err error
	if c.Endpoint, err = storage.ParseEndpoint(endpoint.value, bucket.value); err != nil {
		if strings.ContainsAny(endpoint.value, "@?#") {
			endpoint.value = "" // may hold a password
		}
		s.complain(option{name: "endpoint"}, endpoint, err.Error())
	}
	folder := c.Endpoint.IsFile()

	// LITESTREAM_ variables alone may be for another program of the image.
	asked := db.value != "" || bucket.value != "" || endpoint.value != "" ||
		(id.from != "" && id.from != "LITESTREAM_ACCESS_KEY_ID") || (key.from != "" && key.from != "LITESTREAM_SECRET_ACCESS_KEY")
	if !asked {
		for _, name := range ofBackups {
			if from := s.get(name).from; from != "" {
				c.Idle = append(c.Idle, from)
			}
		}
		return
	}
	if db.value == "" && s.needsDB() {
		s.complain(option{name: "db-path"}, db, "is not set, but other settings of a backup are; set it to the absolute path of the database")
	}
	if bucket.value == "" && !folder {
		s.complain(option{name: "bucket"}, bucket, "is not set, but other settings of a backup are; set it, or none of --db-path, --endpoint and the keys to run without backups")
	}
	if missing := (option{name: "access-key-id", secret: true}); (id.value == "") != (key.value == "") && (id.from == "" || key.from == "") {
		if key.value == "" {
			missing.name = "secret-access-key"
		}
		s.complain(missing, setting{}, "is not set, but the other half of the key is; set both, or none to use the AWS SDK's own chain")
	}
	for _, k := range []struct {
		name string
		setting
	}{{"access-key-id", id}, {"secret-access-key", key}} {
		if strings.ContainsFunc(k.value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			s.complain(option{name: k.name, secret: true}, k.setting, "holds a space, a line break or another character that no key has (not shown)")
		}
	}
	c.DBPath = s.dbPath(db)
	c.Bucket = s.bucket(bucket)
	c.PathPrefix = s.prefix(prefix)
	if region.value != "" && !isRegionName(region.value) {
		s.complain(option{name: "region"}, region, "is no region; write it like eu-central-1, or leave it out to ask the server")
	}
	c.Region = region.value
}

// readRequest reads what a restore over the existing database was asked for by.
// "true" is a request of this container; everything else is one's own name for it.
func (c *Config) readRequest(s *source) string {
	set, o := s.get("restore-pending"), option{name: "restore-pending"}
	switch {
	case no(set.value):
		return ""
	case len(set.value) > 128 || strings.ContainsFunc(set.value, isControl):
		s.complain(o, set, "is neither true nor false nor the id of a request: at most 128 printable characters")
		return ""
	case !c.Enabled() && len(s.problems) == 0:
		s.complain(o, set, "asks for a restore, but backups are off; set --db-path and --bucket, or leave it out")
		return ""
	case strings.EqualFold(set.value, "true"):
		return "true in " + containerID()
	}
	return "id " + set.value
}

// time reads a moment in the past, or nothing.
func (s *source) time(name string) time.Time {
	set, o := s.get(name), option{name: name}
	if set.value == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, set.value)
	switch {
	case err != nil:
		s.complain(o, set, "is no time; write it as RFC 3339, like 2026-11-23T05:32:19Z")
	case time.Until(t) > 5*time.Minute: // more than clocks differ by
		s.complain(o, set, "lies in the future; leave it out for the newest state")
	}
	return t
}

// choose reads a setting that has a few words to choose from.
func choose[T any](s *source, name, want string, words map[string]T) T {
	set := s.get(name)
	v, ok := words[set.value]
	if !ok {
		s.complain(option{name: name}, set, want)
	}
	return v
}

// needsDB: a restore to --output needs to know only the replica.
func (s *source) needsDB() bool {
	return s.command != "restore" || s.get("output").value == ""
}

func (s *source) dbPath(set setting) string {
	o := option{name: "db-path"}
	v := set.value
	switch {
	case v == "":
		return ""
	case strings.ContainsFunc(v, isControl):
		s.complain(o, set, "holds a control character")
	case !filepath.IsAbs(v):
		s.complain(o, set, "must be absolute, like /data/app.db")
	case strings.HasSuffix(v, "/") || filepath.Base(filepath.Clean(v)) == "/":
		s.complain(o, set, "names a folder; name the database file in it, like /data/app.db")
	case filepath.Clean(v) != v:
		s.complain(o, set, "holds . or .. or a double slash; write it as "+quote(filepath.Clean(v)))
	default:
		real, err := behindLink(v)
		if err != nil {
			s.complain(o, set, err.Error())
			return v
		}
		if fi, err := os.Stat(real); err == nil && !fi.Mode().IsRegular() {
			s.complain(o, set, "is a folder or a device, not a file; name the database file, like /data/app.db")
		}
		return real
	}
	return v
}

// behindLink returns the file that a path is a symbolic link to, whether it is
// there or not: SQLite keeps the -wal beside that file, and a restore must not
// put a file in the place of the link.
func behindLink(path string) (string, error) {
	const most = 40 // as the kernel has it
	for range most {
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil //nolint:nilerr // no link
		}
		if !filepath.IsAbs(to) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path)) // .. counts from there
			if err != nil {
				return "", fmt.Errorf("is a symbolic link that can't be followed: %w", err)
			}
			to = filepath.Join(dir, to)
		}
		path = filepath.Clean(to)
	}
	return "", errors.New("is a symbolic link that leads to itself")
}

func (s *source) bucket(set setting) string {
	o := option{name: "bucket"}
	switch {
	case set.value == "":
	case strings.Contains(set.value, "/"):
		s.complain(o, set, "must be the name alone, without s3:// and without a folder; the folder belongs in --path-prefix")
	case !isBucketName(set.value):
		s.complain(o, set, "is no bucket name: 3 to 255 letters, digits, dots and hyphens")
	}
	return set.value
}

func (s *source) prefix(set setting) string {
	o := option{name: "path-prefix"}
	v := strings.Trim(set.value, "/")
	switch {
	case v == "":
		s.complain(o, set, "must name a folder, like "+quote("litestream"))
	case strings.ContainsFunc(v, isControl) || strings.Contains(v, `\`):
		s.complain(o, set, "holds a control character or a backslash")
	case len(v) > 512:
		s.complain(o, set, "is longer than 512 bytes")
	}
	for _, part := range strings.Split(v, "/") {
		if v != "" && (part == "" || part == "." || part == "..") {
			s.complain(o, set, "holds . or .. or a double slash; write it like apps/shop")
			break
		}
	}
	return v
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func (s *source) duration(name string, most time.Duration) time.Duration {
	set := s.get(name)
	d, err := time.ParseDuration(set.value)
	switch {
	case err != nil:
		s.complain(option{name: name}, set, "is no duration; write it with a unit, like 500ms, 10s or 24h")
	case d <= 0:
		s.complain(option{name: name}, set, "must be more than zero")
	case d > most:
		s.complain(option{name: name}, set, fmt.Sprintf("must be at most %s", most))
	}
	return d
}

func (s *source) healthAddr() string {
	set, o := s.get("health-addr"), option{name: "health-addr"}
	if set.value == "off" {
		return ""
	}
	host, port, err := net.SplitHostPort(set.value)
	if err != nil || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		s.complain(o, set, "is no address; write host:port like 127.0.0.1:9180, or :9180 for all interfaces, or off")
		return ""
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		s.complain(o, set, "has a port outside 0 to 65535")
	}
	return set.value
}

func (c *Config) readLog(s *source) {
	format := s.get("log-format")
	if format.value != "text" && format.value != "json" {
		s.complain(option{name: "log-format"}, format, "must be text or json")
	}
	c.Log.Format = format.value
	level := s.get("log-level")
	switch level.value {
	case "debug", "info", "warn", "error":
		_ = c.Log.Level.UnmarshalText([]byte(level.value)) // these four can't fail
	default:
		s.complain(option{name: "log-level"}, level, "must be debug, info, warn or error")
	}
}

// readRestore reads what the restore command alone has.
func (c *Config) readRestore(s *source) {
	out := s.get("output")
	c.Output = out.value
	if out.value == "" {
		c.Output = c.DBPath
	} else if strings.ContainsFunc(out.value, isControl) || strings.HasSuffix(out.value, "/") {
		s.complain(option{name: "output"}, out, "must name a file")
	}
	if c.Bucket == "" && !c.Endpoint.IsFile() && len(s.problems) == 0 {
		s.complain(option{name: "bucket"}, setting{}, "is not set; a restore needs to know its replica")
	}
	at, id := s.get("timestamp"), s.get("txid")
	c.Timestamp = s.time("timestamp")
	if id.value != "" {
		txid, err := ltx.ParseTXID(id.value)
		if err != nil || txid == 0 {
			s.complain(option{name: "txid"}, id, "is no transaction id; write it as 16 hex digits, like 00000000000003e8")
		}
		c.TXID = txid
	}
	if at.value != "" && id.value != "" {
		s.complain(option{name: "txid"}, id, "can't be used together with --timestamp; leave one out")
	}
}
