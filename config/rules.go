package config

import (
	"fmt"
	"slices"

	"github.com/slashacom/slasha-init/internal/text"
)

// rules are what must hold between settings, after each of them was read.
var rules = []func(*reading){
	wholeBackup,
	wholeKey,
	idleSettings,
	requestNeedsBackups,
	restoreNeedsReplica,
	oneState,
	nowRestoresInPlace,
	knownContainer,
	chooseProcesses, // processes.go
	oneWebProcess,
}

// judgesReplica reports whether the command judges the settings of the replica.
func (r *reading) judgesReplica() bool { return slices.Contains(ofReplica.judge, r.command) }

// backups reports whether backups are requested, by any setting that says where the
// database or its replica is, or with which key.
func (r *reading) backups() bool {
	id, key := r.get("access-key-id"), r.get("secret-access-key")
	return r.get("db-path").text != "" || r.get("bucket").text != "" || r.get("endpoint").text != "" ||
		// LITESTREAM_ variables alone may be for another program of the image.
		id.from != "" && id.from != id.fallback || key.from != "" && key.from != key.fallback
}

// wholeBackup refuses half a configuration of backups, which must not become a run
// without backups.
func wholeBackup(r *reading) {
	if !r.judgesReplica() || !r.backups() {
		return
	}
	db, bucket := r.get("db-path"), r.get("bucket")
	needsDB := r.command == "run" || r.get("output").text == "" // a restore to --output needs only the replica
	if db.text == "" && needsDB {
		r.wrong(db, "is not set, but other settings of a backup are; set it to the absolute path of the database")
	}
	if bucket.text == "" && !r.cfg.Replica.Storage.Endpoint.IsFile() {
		r.wrong(bucket, "is not set, but other settings of a backup are; set it, or none of --db-path, --endpoint and the keys to run without backups")
	}
}

// wholeKey refuses half a key. A half that is set but can't be read has been reported
// already.
func wholeKey(r *reading) {
	if !r.judgesReplica() || !r.backups() {
		return
	}
	id, key := r.get("access-key-id"), r.get("secret-access-key")
	if (id.text == "") == (key.text == "") || id.from != "" && key.from != "" {
		return
	}
	missing := id
	if key.text == "" {
		missing = key
	}
	r.wrong(missing, "is not set, but the other half of the key is; set both, or none to use the AWS SDK's own chain")
}

// idleSettings lists the settings that have no effect because backups are off.
func idleSettings(r *reading) {
	if !r.judgesReplica() || r.backups() {
		return
	}
	for _, s := range r.settings {
		if from := r.get(s.name).from; s.backup && from != "" {
			r.cfg.Idle = append(r.cfg.Idle, from)
		}
	}
}

// requestNeedsBackups refuses a request that would otherwise be ignored silently.
func requestNeedsBackups(r *reading) {
	if r.cfg.Restore.Request != "" && !r.backups() {
		r.wrong(r.get("restore-pending"), "asks for a restore, but backups are off; set --db-path and --bucket, or leave it out")
	}
}

// restoreNeedsReplica refuses a restore command without any setting of a replica. If
// there are some, wholeBackup says what is missing.
func restoreNeedsReplica(r *reading) {
	if r.command == "restore" && !r.backups() {
		r.wrong(r.get("bucket"), "is not set; a restore needs to know its replica")
	}
}

// oneState refuses a restore that names both a moment and a transaction, because a
// restore leads to one state.
func oneState(r *reading) {
	if txid := r.get("txid"); r.command == "restore" && txid.text != "" && r.get("timestamp").text != "" {
		r.wrong(txid, "can't be used together with --timestamp; leave one out")
	}
}

// nowRestoresInPlace refuses what the running container can't do: it restores only its
// own database, and only to a moment.
func nowRestoresInPlace(r *reading) {
	if r.command != restoreNow {
		return
	}
	for _, g := range []given{r.get("output"), r.get("txid")} {
		if g.text != "" {
			r.wrong(g, "can't be used together with --now; leave one out")
		}
	}
}

// knownContainer refuses to ask a container that no setting names: a command has to know
// its health page or its socket.
func knownContainer(r *reading) {
	if r.judgesReplica() || r.asksPage() || r.cfg.ControlSocket != "" {
		return
	}
	if _, want := healthAddr(r.get("health-addr").text); want != "" {
		return // it may have been meant as the page to ask
	}
	if socket := r.get("control-socket"); socket.text != "" {
		r.wrong(socket, "turns the socket off, so there is no container to ask; name the socket of the running container")
		return
	}
	r.wrong(r.get("db-path"), "is not set; set it, or --control-socket, to say which container to ask")
}

// oneWebProcess refuses a formation that can only end in "database is locked"
// and, with instances on several hosts, in a spoiled replica.
func oneWebProcess(r *reading) {
	if n := r.cfg.Processes.count(web); n > 1 && r.cfg.Enabled() {
		r.wrong(r.get("formation"), fmt.Sprintf(
			"asks for %d web processes of an app with backups. SQLite has one writer: a second web process waits for its locks, and can't run on another host. Set web=1, and let one process serve more requests at a time", n))
	}
}

// wrongArguments judges what follows the flags. What is wrong there is wrong usage, and
// not a wrong value.
func wrongArguments(r *reading) []problem {
	args, behindDashes := r.args, r.flags.ArgsLenAtDash() == 0
	if r.command != "run" {
		if len(args) == 0 {
			return nil
		}
		return []problem{{where: r.name, value: text.Quote(args[0]), want: "takes no arguments, only flags"}}
	}
	procfile := r.get("procfile").text != ""
	switch {
	case len(args) > 0 && procfile:
		return []problem{{where: "COMMAND", value: text.Quote(args[0]), want: "can't be used together with --procfile; leave one out"}}
	case len(args) > 0 && !behindDashes:
		return []problem{{where: "COMMAND", value: text.Quote(args[0]), want: "must stand behind --, like: slasha-init -- /app serve"}}
	case len(args) == 0 && !procfile:
		return []problem{{where: "COMMAND", want: "is missing; write it after --, like: slasha-init -- /app serve"}}
	}
	return nil
}
