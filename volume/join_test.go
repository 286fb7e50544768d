package volume

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slashacom/slasha-init/internal/exit"
)

// instance is one of several on a volume. A lock belongs to an opened file, so two of
// them in one process keep each other off as two processes do.
type instance struct {
	*Volume
	t   *testing.T
	log *bytes.Buffer

	mu    sync.Mutex
	waits []string
}

func start(t *testing.T, db, name string) *instance {
	t.Helper()
	log := new(bytes.Buffer)
	v := New(Config{DBPath: db, Who: name, Logger: slog.New(slog.NewTextHandler(log, nil))})
	return &instance{Volume: v, t: t, log: log}
}

// joining is a web process's or a worker's, with a database that can be followed.
func (i *instance) joining(web bool) Joining {
	return Joining{
		Web:      web,
		Patience: 5 * time.Second,
		Ready:    func() bool { return true },
		OnWaiting: func(s string) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.waits = append(i.waits, s)
		},
	}
}

// waited are the sentences that it gave for its waiting.
func (i *instance) waited() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.waits)
}

func (i *instance) join(j Joining) *Member {
	i.t.Helper()
	m, err := i.Join(i.t.Context(), j)
	if err != nil {
		i.t.Fatalf("%s: %v", i.cfg.Who, err)
	}
	return m
}

// joined is Join in the background.
type joined struct {
	*Member
	err error
}

func (i *instance) joinLater(ctx context.Context, j Joining) <-chan joined {
	done := make(chan joined, 1)
	go func() {
		m, err := i.Join(ctx, j)
		done <- joined{m, err}
	}()
	return done
}

// noLitter fails where anything of ours is left beside the database.
func noLitter(t *testing.T, db string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Dir(db))
	if err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func dbIn(dir string) string { return filepath.Join(dir, "app.db") }

func TestTheFirstLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := dbIn(filepath.Join(t.TempDir(), "made", "for", "it"))
		first := start(t, db, "the first")
		m := first.join(first.joining(true))
		if !m.Leads() || m.Leader() != "" || !m.CanLock() || len(first.waited()) != 0 {
			t.Errorf("it leads: %v, follows %q, locks: %v, waited for %q", m.Leads(), m.Leader(), m.CanLock(), first.waited())
		}
		if err := m.AwaitLead(t.Context(), nil); err != nil {
			t.Errorf("leading while it leads: %v", err)
		}
		for _, name := range []string{webLock, leadLock, followLock} {
			if _, err := os.Stat(first.Folder().file(name)); err != nil {
				t.Error(err)
			}
		}

		// A second web process waits, and gives up.
		second := start(t, db, "the second")
		began := time.Now()
		_, err := second.Join(t.Context(), second.joining(true))
		var held *HeldError
		if !errors.As(err, &held) || held.By != "the first" || exit.Code(err) != exit.Held {
			t.Errorf("the second: %v", err)
		}
		if took := time.Since(began); took < 5*time.Second || took > 5*time.Second+2*tryEvery {
			t.Errorf("it was patient for %s", took)
		}
		if want := []string{"waiting: another instance holds this database: the first"}; !slices.Equal(second.waited(), want) {
			t.Errorf("it waited for %q", second.waited())
		}
		if said := second.log.String(); !strings.Contains(said, `msg="waiting for another instance to leave this database" instance="the first" for=5s`) {
			t.Errorf("it logged %s", said)
		}

		// A third one waits, and leads when the first has left.
		third := start(t, db, "the third")
		later := third.joinLater(t.Context(), third.joining(true))
		synctest.Wait()
		m.Leave()
		done := <-later
		if done.err != nil || !done.Leads() {
			t.Fatalf("the third: %v", done.err)
		}
		if want := []string{"waiting: another instance holds this database: the first", ""}; !slices.Equal(third.waited(), want) {
			t.Errorf("it waited for %q", third.waited())
		}
		done.Leave()
		noLitter(t, db)
	})
}

// A worker waits until the database is ready, follows, and leads when the leader is gone.
func TestAWorkerFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := dbIn(t.TempDir())
		web := start(t, db, "the web")
		leader := web.join(web.joining(true))

		helper := start(t, db, "the worker")
		var ready atomic.Bool
		j := helper.joining(false)
		j.Ready = ready.Load
		later := helper.joinLater(t.Context(), j)
		synctest.Wait()
		if want := []string{"waiting for the database: another instance holds this database: the web"}; !slices.Equal(helper.waited(), want) {
			t.Errorf("it waits for %q", helper.waited())
		}
		select {
		case <-later:
			t.Fatal("it does not wait")
		case <-time.After(time.Minute): // its patience is for instances that lead, not for the database
		}
		// While the leader replaces the database nobody follows, ready or not.
		release, err := leader.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		ready.Store(true)
		select {
		case <-later:
			t.Fatal("it follows while the database is replaced")
		case <-time.After(time.Second):
		}
		release()
		done := <-later
		if done.err != nil {
			t.Fatal(done.err)
		}
		follower := done.Member
		if follower.Leads() || follower.Leader() != "the web" || !follower.CanLock() || helper.waited()[1] != "" {
			t.Errorf("it leads: %v, follows %q, waited for %q", follower.Leads(), follower.Leader(), helper.waited())
		}

		// Neither may replace the database.
		if _, err := leader.Reserve(); err == nil || err.Error() != "another instance on this volume, like a worker, has the database open; stop it first" {
			t.Errorf("the leader reserves: %v", err)
		}
		if _, err := follower.Reserve(); err == nil || err.Error() != "another instance on this volume leads, and this one follows it; ask that one" {
			t.Errorf("the follower reserves: %v", err)
		}

		// It takes over.
		var seen atomic.Value
		led := make(chan error, 1)
		go func() { led <- follower.AwaitLead(t.Context(), func(by string) { seen.Store(by) }) }()
		synctest.Wait()
		if by := seen.Load(); by != "the web" || follower.Leads() {
			t.Errorf("%v leads, or it does: %v", by, follower.Leads())
		}
		leader.Leave()
		if err := <-led; err != nil || !follower.Leads() || follower.Leader() != "" {
			t.Errorf("it has not taken over: %v", err)
		}
		if said := helper.log.String(); !strings.Contains(said, `msg="following: the database is restored and replicated by another instance" leader="the web"`) {
			t.Errorf("it logged %s", said)
		}
		release, err = follower.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		release()

		// The next web process follows in turn.
		next := start(t, db, "the next web")
		m := next.join(next.joining(true))
		if m.Leads() || m.Leader() != "the worker" {
			t.Errorf("the next web leads: %v, follows %q", m.Leads(), m.Leader())
		}
		m.Leave()
		follower.Leave()
		noLitter(t, db)
	})
}

// A follower that waits for a database which nobody brings leads itself when the leader
// is gone.
func TestTheLeaderDiesBeforeThereIsADatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := dbIn(t.TempDir())
		web, helper := start(t, db, "the web"), start(t, db, "the worker")
		leader := web.join(web.joining(true))
		j := helper.joining(false)
		j.Ready = func() bool { return false }
		later := helper.joinLater(t.Context(), j)
		synctest.Wait()
		leader.Leave()
		done := <-later
		if done.err != nil || !done.Leads() || helper.waited()[1] != "" {
			t.Errorf("it does not lead: %v, and waited for %q", done.err, helper.waited())
		}
		done.Leave()
		noLitter(t, db)
	})
}

// A worker with a request that is still to be carried out waits until it can lead, and
// follows as soon as the leader has carried that out.
func TestARequestIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := dbIn(t.TempDir())
		web, helper := start(t, db, "the web"), start(t, db, "the worker")
		leader := web.join(web.joining(true))
		var due atomic.Bool
		j := helper.joining(false)
		j.Due = due.Load
		due.Store(true)
		if _, err := helper.Join(t.Context(), j); !isHeld(err) {
			t.Errorf("while the leader stays: %v", err)
		}
		later := helper.joinLater(t.Context(), j)
		synctest.Wait()
		due.Store(false)
		done := <-later
		if done.err != nil || done.Leads() {
			t.Errorf("once it was carried out: %v", done.err)
		}
		done.Leave()
		due.Store(true)
		later = helper.joinLater(t.Context(), j)
		synctest.Wait()
		leader.Leave()
		if done = <-later; done.err != nil || !done.Leads() {
			t.Errorf("once the leader has left: %v", done.err)
		}
		done.Leave()
		noLitter(t, db)
	})
}

// A stop ends every wait, with its cause.
func TestStoppedWhileItWaits(t *testing.T) {
	stopped := errors.New("stopped")
	for name, web := range map[string]bool{"for the web to leave": true, "for the database": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := dbIn(t.TempDir())
				first, second := start(t, db, "the first"), start(t, db, "the second")
				leader := first.join(first.joining(true))
				ctx, stop := context.WithCancelCause(t.Context())
				j := second.joining(web)
				j.Ready = func() bool { return false }
				later := second.joinLater(ctx, j)
				synctest.Wait()
				stop(stopped)
				if done := <-later; !errors.Is(done.err, stopped) {
					t.Errorf("it returned %v", done.err)
				}
				leader.Leave()
				noLitter(t, db)
			})
		})
	}
	t.Run("to lead", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			db := dbIn(t.TempDir())
			first, second := start(t, db, "the first"), start(t, db, "the second")
			leader, follower := first.join(first.joining(true)), second.join(second.joining(false))
			ctx, stop := context.WithCancelCause(t.Context())
			led := make(chan error, 1)
			go func() { led <- follower.AwaitLead(ctx, func(string) {}) }()
			synctest.Wait()
			stop(stopped)
			if err := <-led; !errors.Is(err, stopped) || follower.Leads() {
				t.Errorf("it returned %v, and leads: %v", err, follower.Leads())
			}
			leader.Leave()
			follower.Leave()
			if _, err := os.Stat(second.Folder().file(followLock)); err != nil {
				t.Errorf("a file that others may share: %v", err)
			}
		})
	})
}

// An app replaces its whole data folder by renames: while that is gone, a follower must
// not take the lead from an instance that still has it.
func TestTheFolderIsSwappedUnderAFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		db := dbIn(dir)
		first, second := start(t, db, "the first"), start(t, db, "the second")
		leader, follower := first.join(first.joining(true)), second.join(second.joining(false))
		led := make(chan error, 1)
		go func() { led <- follower.AwaitLead(t.Context(), func(string) {}) }()
		synctest.Wait()
		if err := os.Rename(dir, dir+".old"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-led:
			t.Fatalf("it leads: %v", err)
		case <-time.After(time.Second):
		}
		if err := os.Rename(dir+".old", dir); err != nil {
			t.Fatal(err)
		}
		leader.Leave()
		if err := <-led; err != nil {
			t.Error(err)
		}
		follower.Leave()
		noLitter(t, db)
	})
}

// On a volume without locks everybody leads, and each instance warns once.
func TestNoLocks(t *testing.T) {
	db := dbIn(t.TempDir())
	if err := os.WriteFile(FolderOf(db).Path(), nil, 0o644); err != nil { // no folder of ours can be made
		t.Fatal(err)
	}
	for _, name := range []string{"the first", "the second"} {
		i := start(t, db, name)
		m := i.join(i.joining(true))
		if !m.Leads() || m.CanLock() || len(i.waited()) > 0 {
			t.Errorf("%s leads: %v, locks: %v, waited for %q", name, m.Leads(), m.CanLock(), i.waited())
		}
		if n := strings.Count(i.log.String(), "this volume can't be locked, so a second instance on it will go unnoticed"); n != 1 {
			t.Errorf("%s has warned %d times: %s", name, n, i.log)
		}
		release, err := m.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		release()
		m.Leave()
	}
	if _, err := os.Stat(FolderOf(db).Path()); err != nil {
		t.Errorf("what was there is gone: %v", err)
	}
}

// Where not even the database's folder can be made, the restore reports that.
func TestNoFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	i := start(t, dbIn(filepath.Join(dir, "data", "of", "it")), "it")
	m := i.join(i.joining(true))
	if !m.Leads() || m.CanLock() || i.log.Len() > 0 {
		t.Errorf("it leads: %v, locks: %v, logged %s", m.Leads(), m.CanLock(), i.log)
	}
	m.Leave()
}

// A person's restore keeps containers off, and is kept off by one that runs.
func TestOccupy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := dbIn(filepath.Join(t.TempDir(), "new"))
		person, web := start(t, db, "a person"), start(t, db, "the web")
		leave, err := person.Occupy()
		if err != nil {
			t.Fatal(err)
		}
		j := web.joining(false)
		j.Due = func() bool { return true }
		_, err = web.Join(t.Context(), j)
		var held *HeldError
		if !errors.As(err, &held) || !strings.HasPrefix(held.By, "slasha-init restore, host ") {
			t.Errorf("a container beside it: %v", err)
		}
		leave()
		noLitter(t, db)
		m := web.join(web.joining(true))
		if _, err := person.Occupy(); !errors.As(err, &held) || held.By != "the web" || exit.Code(err) != exit.Held {
			t.Errorf("beside a container: %v", err)
		}
		m.Leave()
		noLitter(t, db)
	})
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if _, err := Lock(path); !errors.As(err, &held) || !strings.HasPrefix(held.By, "slasha-init restore, host ") {
		t.Errorf("a second one: %v", err)
	}
	release()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
	release, err = Lock(filepath.Join(t.TempDir(), "no", "folder"))
	if err != nil {
		t.Errorf("where there can be no lock: %v", err)
	}
	release()
}

// Many come and go at once: only one leads at a time, none fails because another
// removes the folder, and nothing is left.
func TestComingAndGoing(t *testing.T) {
	db := dbIn(t.TempDir())
	var leaders atomic.Int32
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			for range 30 {
				i := start(t, db, "one of many")
				j := i.joining(false)
				j.Ready = func() bool { return leaders.Load() > 0 }
				m, err := i.Join(t.Context(), j)
				if err != nil {
					t.Error(err)
					return
				}
				if m.Leads() {
					if leaders.Add(1) != 1 {
						t.Error("two lead")
					}
					leaders.Add(-1)
				}
				if !m.CanLock() || strings.Contains(i.log.String(), "can't be locked") {
					t.Errorf("it could not lock: %s", i.log)
				}
				m.Leave()
			}
		})
	}
	all.Wait()
	left, err := os.ReadDir(FolderOf(db).Path())
	if err == nil && (len(left) != 1 || left[0].Name() != followLock) {
		t.Errorf("left are %v", left)
	}
}
