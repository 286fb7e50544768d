package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// chained is an entry of the sample app, with what it says of the one before.
type chained struct {
	id             int64
	name, at, prev string
}

// history reads all rows of a database that nothing has open.
func history(path string) (rows []chained, err error) {
	db, err := sql.Open("sqlite3", "file:"+path+"?mode=rw")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var check string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
		return nil, fmt.Errorf("integrity_check: %q, %w", check, err)
	}
	found, err := db.Query("SELECT id, name, at, prev FROM entries ORDER BY id")
	if err != nil {
		return nil, err
	}
	defer func() { _ = found.Close() }()
	for found.Next() {
		var r chained
		if err := found.Scan(&r.id, &r.name, &r.at, &r.prev); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, found.Err()
}

// judgeEnd looks whether a container ended in one of the ways that its life
// explains.
func (a *arena) judgeEnd(l *tenure) {
	a.t.Helper()
	said := l.said.String()
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(said, part) })
	}
	a.tally[fmt.Sprintf("exit %d", l.code)]++
	ok := false
	switch l.code {
	case 128 + int(syscall.SIGKILL):
		ok = l.killed
	case 0:
		ok = l.stops
		if ok {
			a.clean(l)
		}
	case 128 + int(syscall.SIGTERM):
		// Either it has exited with that code: the signal came before its app was
		// started, or its app before that caught the signal. Or the signal itself has
		// ended it, which is right only before its first instruction: supervisor/early.c
		// takes all signals before main, and nobody has said a word by then.
		ok = l.stops && has("stopped before the app was started", "ended by signal 15")
		if state, is := l.Cmd.ProcessState.Sys().(syscall.WaitStatus); is && state.Signaled() {
			ok = l.stops && said == "" && len(l.acks.all()) == 0 && len(l.acks.odd) == 0
		}
	case 70:
		ok = l.stops && has("the last upload failed")
	case 74:
		ok = l.outage && has("can't be reached") || has("has the database open; stop it first")
	case 75:
		ok = has("another instance holds this", "another instance has taken this replica's lease")
	}
	if has("a bug in slasha-init", "panic:", "DATA RACE") {
		ok = false
	}
	if !ok {
		a.errorf("%s: exit %d, killed %v, stopped %v; it said:\n%s\n%s", l.name, l.code, l.killed, l.stops, strings.Join(l.acks.odd, "\n"), last(said, 3000))
	}
}

// clean notes what a leader's exit with 0 says: all of its app's commits are in the
// replica.
func (a *arena) clean(l *tenure) {
	s, ok := l.newest()
	if !ok || !s.held() || len(s.Processes) != 1 || s.LastSyncedAt == nil {
		return
	}
	app := l.signature(s.Processes[0].PID)
	acks := l.acks.all()
	i := slices.IndexFunc(acks, func(k signedAck) bool { return k.name == app })
	if i >= 0 && acks[i].At.Before(time.Time(*s.LastSyncedAt)) { // it is what is replicated
		a.promise(app, time.Now())
	}
}

// span is a time for which a container surely held the lease: it said so at both
// ends.
type span struct {
	life     *tenure
	epoch    uint64
	from, to time.Time
}

// longestSpan is more than is between two questions.
const longestSpan = time.Second

// spans returns them, and looks whether each container's own answers fit together.
func (a *arena) spans() (spans []span) {
	for _, l := range a.lives {
		polls := l.answers()
		var epoch uint64
		for i, p := range polls {
			if !p.held() {
				continue
			}
			if p.Lease.Epoch < epoch || p.Lease.Epoch == 0 {
				a.errorf("%s: its epoch went from %d to %d", l.name, epoch, p.Lease.Epoch)
			}
			epoch = p.Lease.Epoch
			if i == 0 {
				continue
			}
			before := polls[i-1]
			if before.held() && before.Lease.Epoch == epoch && p.asked.Sub(before.answered) < longestSpan {
				spans = append(spans, span{l, epoch, before.answered, p.asked})
			}
		}
	}
	slices.SortFunc(spans, func(x, y span) int { return x.from.Compare(y.from) })
	return spans
}

// judgeHealth looks whether at any time two held the lease, or one with an epoch
// that is not its own, and takes down what was promised.
func (a *arena) judgeHealth() {
	a.t.Helper()
	owner := make(map[uint64]*tenure)
	for _, l := range a.lives {
		for _, p := range l.answers() {
			if !p.held() {
				continue
			}
			if other := owner[p.Lease.Epoch]; other != nil && other != l {
				a.errorf("epoch %d: both %s and %s held the lease", p.Lease.Epoch, other.name, l.name)
				return
			}
			owner[p.Lease.Epoch] = l
			if p.LastSyncedAt == nil {
				continue
			}
			for _, pid := range pids(p) {
				a.promise(l.signature(pid), time.Time(*p.LastSyncedAt))
			}
			// Those who follow have the same file open for as long as they live.
			for _, f := range a.lives {
				if f != l && f.place.volume == l.place.volume {
					if q, ok := f.following(p.answered); ok {
						for _, pid := range pids(q) {
							a.promise(f.signature(pid), time.Time(*p.LastSyncedAt))
						}
					}
				}
			}
		}
	}
	spans := a.spans()
	a.leaders, a.moves = len(owner), 0
	for i := 1; i < len(spans); i++ {
		x, y := spans[i-1], spans[i]
		if x.life.place.volume != y.life.place.volume {
			a.moves++
		}
		if x.epoch != y.epoch && (y.from.Before(x.to) || y.epoch < x.epoch) {
			a.errorf("%s held the lease with epoch %d from %s to %s, and %s with epoch %d from %s to %s", x.life.name, x.epoch, a.clock(x.from), a.clock(x.to), y.life.name, y.epoch, a.clock(y.from), a.clock(y.to))
			return
		}
	}
}

func (a *arena) clock(at time.Time) string { return fmt.Sprintf("%.3f", at.Sub(a.began).Seconds()) }

// following returns the answer of a container that ran as a follower around a
// moment: it said so before and after.
func (l *tenure) following(at time.Time) (poll, bool) {
	polls := l.answers()
	i, _ := slices.BinarySearchFunc(polls, at, func(p poll, at time.Time) int { return p.answered.Compare(at) })
	if i == 0 || i >= len(polls) {
		return poll{}, false
	}
	x, y := polls[i-1], polls[i]
	is := func(p poll) bool {
		return p.err == nil && p.Lease.State == "following" && p.Phase == healthz.Running
	}
	return x, is(x) && is(y) && slices.Equal(pids(x), pids(y))
}

// checked restores, when all containers have ended or the leader goes on, and looks
// at the rows.
func (a *arena) checked(leader *tenure) {
	a.t.Helper()
	began := time.Now()
	a.judgeHealth()
	dir := a.t.TempDir()
	official, ours := filepath.Join(dir, "official.db"), filepath.Join(dir, "ours.db")
	a.s3.OfficialRestore(official)
	rows, err := history(official)
	if err != nil {
		a.fatalf("the restored database: %v", err)
	}
	if a.ending { // else it goes on between the two
		testbed.MustRun(a.t, a.s3.Settings(a.s3.URL(), leader.place.volume), time.Minute, testbed.SlashaInit(a.t), "restore", "--output", ours)
		if same, err := history(ours); err != nil || !slices.Equal(rows, same) {
			a.errorf("our restore has %d rows, the official one %d, and they are not the same: %v", len(same), len(rows), err)
		}
	}
	a.judgeRows(rows)
	a.kept = rows
	a.logf("checked in %s: %d rows", time.Since(began).Round(time.Millisecond), len(rows))
	if a.t.Failed() {
		a.t.FailNow()
	}
}

// judgeRows looks whether the rows are what one lineage had, that goes on from what
// was restored before, and whether they have all that was promised.
func (a *arena) judgeRows(rows []chained) {
	a.t.Helper()
	newest := ""
	for i, r := range rows {
		if r.id != int64(i+1) || r.prev != newest {
			a.errorf("two histories are mixed: row %d, number %d, of %s at %s goes on from %q, and before it is %q", r.id, i+1, r.name, r.at, r.prev, newest)
			break
		}
		newest = r.name + " " + r.at
	}
	for i, r := range a.kept {
		if i >= len(rows) || rows[i] != r {
			a.errorf("row %d of the last check, of %s at %s, is no longer there; there are %d", r.id, r.name, r.at, len(rows))
			break
		}
	}
	promised := 0
	for _, l := range a.lives {
		var lost []signedAck
		var before time.Time
		for _, k := range l.acks.all() {
			if !k.At.Before(a.promises[k.name]) {
				continue
			}
			promised++
			if k.ID > int64(len(rows)) || rows[k.ID-1].name != k.name {
				lost, before = append(lost, k), a.promises[k.name]
			}
		}
		if len(lost) > 0 {
			x, y := lost[0], lost[len(lost)-1]
			a.errorf("%s: promised to be in the replica before %s, and lost: %d commits, from %d of %s at %s to %d of %s at %s", l.name, a.clock(before), len(lost),
				x.ID, x.name, a.clock(x.At), y.ID, y.name, a.clock(y.At))
		}
	}
	a.logf("%d commits were promised", promised)
	if promised == 0 {
		a.errorf("nothing was promised")
	}
}
