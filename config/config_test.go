package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/exit"
)

// full is a whole, right configuration.
func full(change ...string) []string {
	env := []string{
		"SLASHA_DB_PATH=/data/app.db",
		"SLASHA_BUCKET=my-bucket",
		"SLASHA_ENDPOINT=http://127.0.0.1:9000",
		"SLASHA_ACCESS_KEY_ID=MADEUPKEY0000000000",
		"SLASHA_SECRET_ACCESS_KEY=made-up-secret-value",
	}
	return append(env, change...)
}

var app = []string{"--", "/app", "--db-path", "is the app's"}

func TestParseWhole(t *testing.T) {
	cfg, err := Parse("run", append([]string{"--sync-interval=2s", "--path-prefix", "/apps/shop/"}, app...), full("SLASHA_SYNC_INTERVAL=9s", "SLASHA_MAX_LAG="))
	if err != nil {
		t.Fatal(err)
	}
	replica := cfg.Replica.Storage
	switch {
	case !slices.Equal(cfg.Databases, []string{"/data/app.db"}), replica.Bucket != "my-bucket", replica.Endpoint.URL != "http://127.0.0.1:9000",
		replica.AccessKeyID != "MADEUPKEY0000000000", replica.SecretAccessKey != "made-up-secret-value":
		t.Errorf("the replica is %+v", cfg)
	case cfg.Replicate.SyncInterval != 2*time.Second:
		t.Errorf("the flag does not win: %s", cfg.Replicate.SyncInterval)
	case cfg.Health.MaxLag != 10*time.Second:
		t.Errorf("an empty variable does not mean the default: %s", cfg.Health.MaxLag)
	case replica.Prefix != "apps/shop":
		t.Errorf("prefix %q", replica.Prefix)
	case !slices.Equal(cfg.Processes.Commands[0].Args, app[1:]):
		t.Errorf("commands %q", cfg.Processes.Commands)
	case !cfg.Enabled(), cfg.ControlSocket != "/data/.app.db.slasha/control.sock":
		t.Errorf("enabled %v, socket %s", cfg.Enabled(), cfg.ControlSocket)
	}
}

func TestParseWithoutBackups(t *testing.T) {
	// LITESTREAM_ variables alone may be meant for another program.
	cfg, err := Parse("run", app, []string{"LITESTREAM_ACCESS_KEY_ID=x", "SLASHA_BUCKET=", "SLASHA_DB_PATH="})
	if err != nil || cfg.Enabled() {
		t.Errorf("enabled %v, %v", cfg.Enabled(), err)
	}
}

func TestKeysFallBack(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := []string{"SLASHA_DB_PATH=/data/app.db", "SLASHA_BUCKET=my-bucket"}
	for name, c := range map[string]struct {
		env     []string
		id, key string
	}{
		"file":       {[]string{"SLASHA_ACCESS_KEY_ID=id", "SLASHA_SECRET_ACCESS_KEY_FILE=" + file}, "id", "from-a-file"},
		"litestream": {[]string{"LITESTREAM_ACCESS_KEY_ID=lid", "LITESTREAM_SECRET_ACCESS_KEY=lkey"}, "lid", "lkey"},
		"ours first": {[]string{"SLASHA_ACCESS_KEY_ID=id", "SLASHA_SECRET_ACCESS_KEY=key", "LITESTREAM_ACCESS_KEY_ID=lid", "LITESTREAM_SECRET_ACCESS_KEY=lkey"}, "id", "key"},
		"sdk chain":  {nil, "", ""},
	} {
		cfg, err := Parse("run", app, append(base, c.env...))
		if got := cfg.Replica.Storage; err != nil || got.AccessKeyID != c.id || got.SecretAccessKey != c.key {
			t.Errorf("%s: %q %q, %v", name, got.AccessKeyID, got.SecretAccessKey, err)
		}
	}
}

func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		args  []string
		env   []string
		want  []string // each in one line of its own
		usage bool
	}{
		"unknown flags, all of them": {args: []string{"--db-pth=x", "--bukket", "y", "--", "/app"}, want: []string{"--db-pth: there is no such flag"}, usage: true},
		"one dash":                   {args: []string{"-secret-access-key=made-up-secret-value", "--", "/app"}, want: []string{"-s: there are no one-letter flags"}, usage: true},
		"no value":                   {args: []string{"--bucket"}, want: []string{"--bucket: needs a value"}, usage: true},
		"no command":                 {args: []string{"--bucket=my-bucket"}, env: full(), want: []string{"COMMAND: is missing"}, usage: true},
		"no dashes":                  {args: []string{"--bucket=my-bucket", "/app"}, env: full(), want: []string{`COMMAND "/app": must stand behind --`}, usage: true},
		"relative path":              {env: full("SLASHA_DB_PATH=data/app.db"), want: []string{`--db-path (from SLASHA_DB_PATH) "data/app.db": must be absolute`}},
		"path with dots":             {env: full("SLASHA_DB_PATH=/data/../etc/app.db"), want: []string{`write it as "/etc/app.db"`}},
		"path ends in slash":         {env: full("SLASHA_DB_PATH=/data/"), want: []string{"names a folder"}},
		"path is a folder":           {env: full("SLASHA_DB_PATH=" + dir), want: []string{"is a folder or a device"}},
		"path is a device":           {env: full("SLASHA_DB_PATH=/dev/null"), want: []string{"is a folder or a device"}},
		"control character":          {env: full("SLASHA_DB_PATH=/data/a\x1b[31m.db"), want: []string{`"/data/a\x1b[31m.db": holds a control character`}},
		"prefix climbs":              {env: full("SLASHA_PATH_PREFIX=apps/../../other"), want: []string{"--path-prefix (from SLASHA_PATH_PREFIX)", "holds . or .."}},
		"prefix is nothing":          {env: full("SLASHA_PATH_PREFIX=//"), want: []string{"must name a folder"}},
		"bucket is a URL":            {env: full("SLASHA_BUCKET=s3://my-bucket/app"), want: []string{"must be the name alone"}},
		"bucket is odd":              {env: full("SLASHA_BUCKET=my bucket"), want: []string{"is not a bucket name"}},
		"endpoint without host":      {env: full("SLASHA_ENDPOINT=https://"), want: []string{`--endpoint (from SLASHA_ENDPOINT) "https://": has no host`}},
		"endpoint's scheme":          {env: full("SLASHA_ENDPOINT=ftp://example.com"), want: []string{`has the scheme "ftp"`}},
		"endpoint with a password":   {env: full("SLASHA_ENDPOINT=https://me:made-up-secret-value@example.com"), want: []string{"--endpoint (from SLASHA_ENDPOINT): holds a user name or a password"}},
		"zero":                       {env: full("SLASHA_SYNC_INTERVAL=0s"), want: []string{`"0s": must be more than zero`}},
		"negative":                   {env: full("SLASHA_STOP_TIMEOUT=-3s"), want: []string{`"-3s": must be more than zero`}},
		"no unit":                    {args: []string{"--max-lag=10", "--", "/app"}, env: full(), want: []string{`--max-lag "10": is not a duration; write it with a unit`}},
		"endless":                    {env: full("SLASHA_STOP_TIMEOUT=99999h"), want: []string{"must be at most"}},
		"health address":             {env: full("SLASHA_HEALTH_ADDR=9180"), want: []string{"write host:port"}},
		"health port":                {env: full("SLASHA_HEALTH_ADDR=:99999"), want: []string{"outside 0 to 65535"}},
		"log":                        {env: full("SLASHA_LOG_FORMAT=xml", "SLASHA_LOG_LEVEL=loud"), want: []string{"must be text or json", "must be debug, info, warn or error"}},
		"process type":               {env: full("SLASHA_PROCESS_TYPE=Web 1"), want: []string{"must be a word"}},
		"only the database":          {env: []string{"SLASHA_DB_PATH=/data/app.db"}, want: []string{"--bucket: is not set"}},
		"only the bucket":            {env: []string{"SLASHA_BUCKET=my-bucket"}, want: []string{"--db-path: is not set"}},
		"only a key":                 {env: []string{"SLASHA_SECRET_ACCESS_KEY=made-up-secret-value"}, want: []string{"--db-path: is not set", "--bucket: is not set", "--access-key-id: is not set, but the other half"}},
		"only an endpoint":           {env: []string{"SLASHA_ENDPOINT=https://example.com"}, want: []string{"--db-path: is not set", "--bucket: is not set"}},
		"half a key":                 {env: []string{"SLASHA_DB_PATH=/data/app.db", "SLASHA_BUCKET=my-bucket", "SLASHA_ACCESS_KEY_ID=MADEUPKEY0000000000"}, want: []string{"--secret-access-key: is not set, but the other half"}},
		"key with a line break":      {env: full("SLASHA_SECRET_ACCESS_KEY=made-up\nsecret-value"), want: []string{"--secret-access-key (from SLASHA_SECRET_ACCESS_KEY): holds a space, a line break"}},
		"key twice":                  {env: full("SLASHA_SECRET_ACCESS_KEY_FILE=/x"), want: []string{"set one of them"}},
		"key's file is missing":      {env: append(full()[:4:4], "SLASHA_SECRET_ACCESS_KEY_FILE=/no/such/file"), want: []string{"--secret-access-key (from SLASHA_SECRET_ACCESS_KEY_FILE): the file can't be read"}},
		"lease":                      {env: full("SLASHA_LEASE=maybe"), want: []string{`--lease (from SLASHA_LEASE) "maybe": must be auto, required or off`}},
		"a short lease":              {env: full("SLASHA_LEASE_TTL=1s"), want: []string{`--lease-ttl (from SLASHA_LEASE_TTL) "1s": must be at least 3s`}},
		"request of odd characters":  {env: full("SLASHA_RESTORE_PENDING=a\nb"), want: []string{"is neither true nor false nor the id"}},
		"all at once": {
			env:  full("SLASHA_DB_PATH=x", "SLASHA_BUCKET=a/b", "SLASHA_ENDPOINT=ftp://x", "SLASHA_PATH_PREFIX=..", "SLASHA_SYNC_INTERVAL=x", "SLASHA_HEALTH_ADDR=x"),
			want: []string{"--db-path", "--bucket", "--endpoint", "--path-prefix", "--sync-interval", "--health-addr"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			args := c.args
			if args == nil {
				args = app
			}
			_, err := Parse("run", args, c.env)
			var wrong *Error
			if !errors.As(err, &wrong) {
				t.Fatalf("accepted: %v", err)
			}
			code := exit.Config
			if c.usage {
				code = exit.Usage
			}
			if wrong.ExitCode() != code {
				t.Errorf("exit code %d", wrong.ExitCode())
			}
			lines := strings.Split(err.Error(), "\n")
			for _, want := range c.want {
				if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, want) }) {
					t.Errorf("no line says %q:\n%s", want, err)
				}
			}
			for _, l := range lines {
				if !strings.HasPrefix(l, "slasha-init: ") || strings.Contains(l, "made-up") {
					t.Errorf("line %q", l)
				}
			}
		})
	}
}

func TestEachUnknownFlagIsReported(t *testing.T) {
	_, err := Parse("run", []string{"--one", "--two=2", "--bucket=b/c", "--", "/app"}, nil)
	for _, want := range []string{"--one: there is no such flag", "--two: there is no such flag", "--bucket"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s: %v", want, err)
		}
	}
}

func TestHelpIsNoError(t *testing.T) {
	for _, flag := range []string{"--help", "-h"} {
		if _, err := Parse("run", []string{flag}, nil); !errors.Is(err, ErrHelp) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestAppsEnvironment(t *testing.T) {
	got := appEnviron([]string{
		"PATH=/bin", "SLASHA_DB_PATH=/data/app.db", "SLASHA_SECRET_ACCESS_KEY=s", "SLASHA_SECRET_ACCESS_KEY_FILE=/f",
		"SLASHA_ACCESS_KEY_ID_FILE=/f", "LITESTREAM_ACCESS_KEY_ID=i", "LITESTREAM_SECRET_ACCESS_KEY=s", "SLASHA_LEASE=auto",
		"SLASHA_APP_NAME=shop", "AWS_SECRET_ACCESS_KEY=the app's own", "EMPTY=", "SLASHA_DB_PATHS=other",
	})
	want := []string{"PATH=/bin", "SLASHA_APP_NAME=shop", "AWS_SECRET_ACCESS_KEY=the app's own", "EMPTY=", "SLASHA_DB_PATHS=other"}
	if !slices.Equal(got, want) {
		t.Errorf("the app sees %q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--db-path", "/data/app.db", "https://example.com", "b")
	f.Add("-secret", "\x00", "file://x", "s3://")
	f.Fuzz(func(t *testing.T, flag, db, endpoint, bucket string) {
		const secret = "a-made-up-secret-that-must-not-show"
		cfg, err := Parse("run", []string{flag, "--", "/app"}, []string{
			"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=" + endpoint, "SLASHA_BUCKET=" + bucket,
			"SLASHA_ACCESS_KEY_ID=id", "SLASHA_SECRET_ACCESS_KEY=" + secret,
		})
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the secret shows: %v", err)
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r != '\n' && isControl(r) }) {
				t.Errorf("a control character shows: %q", err)
			}
			return
		}
		if !cfg.Enabled() || !filepath.IsAbs(cfg.Databases[0]) || filepath.Clean(cfg.Databases[0]) != cfg.Databases[0] {
			t.Errorf("accepted %q as a path", cfg.Databases)
		}
	})
}

// Settings of backups alone turn none on, and are reported to have no effect.
func TestSettingsWithoutBackups(t *testing.T) {
	cfg, err := Parse("run", []string{"--lease=off", "--", "/app"}, []string{"SLASHA_PATH_PREFIX=apps/a", "SLASHA_STOP_TIMEOUT=5s"})
	if err != nil || cfg.Enabled() || strings.Join(cfg.Idle, " ") != "SLASHA_PATH_PREFIX --lease" {
		t.Errorf("enabled %v, idle %q, %v", cfg.Enabled(), cfg.Idle, err)
	}
	if cfg, err := Parse("run", []string{"--lease=off", "--", "/app"}, full()); err != nil || len(cfg.Idle) > 0 {
		t.Errorf("idle %q, %v", cfg.Idle, err)
	}
}

// A key that can't be read is not one that is not set.
func TestAKeyThatCantBeRead(t *testing.T) {
	for _, change := range [][]string{{"SLASHA_SECRET_ACCESS_KEY_FILE=/no/such/file"}, {"SLASHA_SECRET_ACCESS_KEY_FILE=/x", "SLASHA_SECRET_ACCESS_KEY=made-up-secret-value"}} {
		_, err := Parse("run", []string{"--", "/app"}, append(full()[:4:4], change...))
		if err == nil || strings.Contains(err.Error(), "the other half") {
			t.Errorf("%q: %v", change, err)
		}
	}
}
