package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// samples is a value of each setting, other than its default, and the settings that it
// needs beside it. %dir is a folder with a Procfile.
var samples = map[string]struct {
	value string
	with  []string
}{
	"db-path":              {value: "/data/other.db"},
	"bucket":               {value: "other-bucket"},
	"endpoint":             {value: "s3.eu-central-1.wasabisys.com"},
	"access-key-id":        {value: "OTHERMADEUPKEY000000"},
	"secret-access-key":    {value: "another-made-up-value"},
	"path-prefix":          {value: "apps/shop"},
	"region":               {value: "eu-central-1"},
	"restore-pending":      {value: "7"},
	"restore-timestamp":    {value: "2020-01-02T03:04:05Z"},
	"on-stale":             {value: "fail"},
	"restore-check":        {value: "full"},
	"sync-interval":        {value: "2s"},
	"max-lag":              {value: "11s"},
	"snapshot-interval":    {value: "25h"},
	"retention":            {value: "169h"},
	"verify-interval":      {value: "9h"},
	"process-type":         {value: "worker"},
	"procfile":             {value: "%dir/Procfile"},
	"formation":            {value: "web=1,worker=3", with: []string{"--procfile=%dir/Procfile"}},
	"log-prefix":           {value: "true"},
	"user":                 {value: "1234:1234"},
	"no-new-privs":         {value: "true"},
	"signal-scope":         {value: "child"},
	"stop-signal":          {value: "QUIT"},
	"lease":                {value: "required"},
	"lease-ttl":            {value: "61s"},
	"lock-timeout":         {value: "91s"},
	"stop-timeout":         {value: "8s"},
	"kill-on-parent-death": {value: "INT"},
	"health-addr":          {value: "127.0.0.1:0"},
	"control-socket":       {value: "/slasha.sock"},
	"log-format":           {value: "json"},
	"log-level":            {value: "debug"},
	"now":                  {value: "true"},
	"output":               {value: "/data/look.db"},
	"timestamp":            {value: "2020-01-02T03:04:05Z"},
	"txid":                 {value: "00000000000003e8"},
	"timeout":              {value: "31s"},
	"json":                 {value: "true"},
}

// parseSample parses a whole configuration with flags, as the first command that
// judges s.
func parseSample(t *testing.T, s setting, dir string, flags ...string) (Config, error) {
	t.Helper()
	command := strings.TrimSuffix(s.by.judge[0], " --now")
	if slices.Contains(s.by.judge, "run") {
		command = "run"
	}
	args := slices.Clone(flags)
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "%dir", dir)
	}
	if command == "run" && !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--procfile=") }) {
		args = append(args, app...)
	}
	return Parse(command, args, full())
}

func sampleDir(t *testing.T) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Procfile"), []byte("web: /app serve\nworker: /app work\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An entry of the table is all that a setting needs: Parse takes it as a flag and as a
// variable, stores it, and judges it; help shows it; the app does not see it.
func TestEachSetting(t *testing.T) {
	dir := sampleDir(t)
	var help bytes.Buffer
	Help(&help)
	names := make(map[string]bool)
	for _, s := range settings {
		t.Run(s.name, func(t *testing.T) {
			if names[s.name] || s.name == "" || s.name != strings.ToLower(s.name) {
				t.Errorf("it is there twice, or has no name for a flag")
			}
			names[s.name] = true
			switch {
			case s.usage == "" || !strings.Contains(help.String(), "\n  --"+s.name):
				t.Fatal("it has no help line")
			case s.read == nil:
				t.Fatal("it has no reader")
			case len(s.by.take) == 0 || len(s.by.judge) == 0:
				t.Fatal("it has no commands")
			}
			for _, command := range s.by.take {
				if !slices.Contains(every, command) {
					t.Errorf("there is no command %q", command)
				}
			}
			for _, command := range s.by.judge {
				if command != restoreNow && !slices.Contains(s.by.take, command) || command == restoreNow && !slices.Contains(s.by.take, "restore") {
					t.Errorf("%s judges it and does not take it", command)
				}
			}
			if got := appEnviron([]string{s.variable() + "=x"}); len(got) > 0 {
				t.Errorf("the app sees it")
			}

			sample, ok := samples[s.name]
			if !ok || sample.value == s.value {
				t.Fatal("this test needs a sample of it")
			}
			without, err := parseSample(t, s, dir, sample.with...)
			if err != nil {
				t.Fatal(err)
			}
			with, err := parseSample(t, s, dir, append([]string{"--" + s.name + "=" + sample.value}, sample.with...)...)
			if err != nil {
				t.Fatal(err)
			}
			if reflect.DeepEqual(with, without) {
				t.Error("it has no effect")
			}
			_, err = parseSample(t, s, dir, append([]string{"--" + s.name + "=\x01"}, sample.with...)...)
			if err == nil || !strings.Contains(err.Error(), "slasha-init: --"+s.name) {
				t.Errorf("it takes every value: %v", err)
			}
		})
	}
}

// Some setting sets each field of Config.
func TestEachFieldIsSet(t *testing.T) {
	dir := sampleDir(t)
	set := make(map[string]bool)
	for _, s := range settings {
		sample := samples[s.name]
		cfg, err := parseSample(t, s, dir, append([]string{"--" + s.name + "=" + sample.value}, sample.with...)...)
		if err != nil {
			t.Fatal(err)
		}
		fields(reflect.ValueOf(cfg), "Config", set)
	}
	for _, c := range []struct{ args, environ []string }{
		{append([]string{"--endpoint=file:///backups"}, app...), full()},
		{app, []string{"SLASHA_LEASE=off"}},
	} {
		cfg, err := Parse("run", c.args, c.environ)
		if err != nil {
			t.Fatal(err)
		}
		fields(reflect.ValueOf(cfg), "Config", set)
	}
	for name, ok := range set {
		if !ok {
			t.Errorf("no setting sets %s", name)
		}
	}
	if len(set) < len(settings)-5 { // some share a field
		t.Errorf("only %d fields were looked at", len(set))
	}
}

// fields notes for each field, by its path, whether it is not zero. It leaves out funcs
// and the logger, which main fills in.
func fields(v reflect.Value, path string, set map[string]bool) {
	for i := range v.NumField() {
		f, name := v.Field(i), path+"."+v.Type().Field(i).Name
		switch {
		case f.Kind() == reflect.Func || name == "Config.Replica.Storage.Logger":
		case f.Kind() == reflect.Struct && f.Type().PkgPath() != "time":
			fields(f, name, set)
		default:
			set[name] = set[name] || !f.IsZero()
		}
	}
}
