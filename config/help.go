package config

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Help prints all commands and settings.
func Help(w io.Writer) {
	fmt.Fprint(w, `slasha-init keeps an app's SQLite database in an S3-compatible bucket: it restores
it when it is missing, runs the app, streams every commit to the bucket, and
answers /healthz.

  slasha-init [flags] -- COMMAND [ARG...]      run COMMAND under supervision
  slasha-init run [flags] -- COMMAND [ARG...]  the same, spelled out
  slasha-init run [flags] --procfile Procfile  run several processes
  slasha-init restore [flags] [--output PATH]  restore to a file and exit
  slasha-init restore --now [--timestamp T]    restore in the running container
  slasha-init sync [--timeout D]               return when everything committed
                                               before the call is in the bucket
  slasha-init healthcheck                      exit 0 if healthy, 1 if not
  slasha-init status [--json]                  the same, for a person
  slasha-init version | help

Each flag can also be set as a variable: --db-path as SLASHA_DB_PATH. The flag
wins. The keys can come from files: SLASHA_SECRET_ACCESS_KEY_FILE. Without
--db-path and --bucket the app is only supervised.

`)
	for _, s := range settings {
		name, usage := pflag.UnquoteUsage(&pflag.Flag{Name: s.name, Usage: s.usage, Value: stringValue(s.value)})
		line := "  --" + s.name + " " + name
		switch {
		case s.bare == "true":
			line = "  --" + s.name
		case s.bare != "":
			line = "  --" + s.name + "[=" + name + "]"
		}
		if !slices.Contains(s.by.take, "run") {
			usage += " (" + strings.Join(s.by.take, ", ") + ")"
		}
		if s.value != "" {
			usage += " (default " + s.value + ")"
		}
		fmt.Fprintf(w, "%-28s %s\n", line, usage)
	}
}

// stringValue makes pflag take the flag for one of a string.
type stringValue string

func (stringValue) Set(string) error { return nil }
func (stringValue) Type() string     { return "string" }
func (v stringValue) String() string { return string(v) }
