package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// aside lists the databases that were set aside.
func aside(t *testing.T, db string) []string {
	t.Helper()
	dir, name := filepath.Split(db)
	list, err := filepath.Glob(filepath.Join(dir, "."+name+".slasha", "aside", "*", name))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// backedUp fills a replica through our binary, and then the database by the app
// alone: there are more entries here than there.
func backedUp(t *testing.T, settings []string, db string, replicated, more int) {
	t.Helper()
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "0", "--count", fmt.Sprint(replicated))...)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	w := worker(t, db, "--every", "0", "--count", fmt.Sprint(more))
	testbed.MustRun(t, nil, 30*time.Second, w[0], w[1:]...)
}

// A restore that was asked for is made once: the old database is kept, a restart
// does not do it again, a new request does.
func TestRestoreOverTheDatabase(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	backedUp(t, settings, db, 20, 5)

	start := func(request string, count int) *testbed.Container {
		t.Helper()
		// The app begins a little later, so that health can be looked at.
		app := append([]string{"sh", "-c", `sleep 0.3; exec "$@"`, "sh"}, worker(t, db, "--every", "0", "--count", fmt.Sprint(count))...)
		return testbed.StartContainer(t, append(settings, "SLASHA_RESTORE_PENDING="+request), app...)
	}
	c := start("request-1", 1)
	s := c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Restore.State != healthz.RestoreDone {
			return fmt.Errorf("restore is %s", s.Restore.State)
		}
		return nil
	})
	list := aside(t, db)
	if text(s.Restore.Reason) != "pending" || len(list) != 1 || text(s.Restore.SetAside) != filepath.Dir(list[0]) {
		t.Errorf("health says %+v; set aside %v", s.Restore, list)
	}
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	if n := len(testbed.Entries(t, db)); n != 21 {
		t.Errorf("%d entries, not 20 and one", n)
	}
	if n := len(testbed.Entries(t, list[0])); n != 25 {
		t.Errorf("%d entries in the old database", n)
	}
	for n, request := range []string{"request-1", "request-2", "request-2"} {
		before := len(aside(t, db))
		c := start(request, 1)
		if code := c.Wait(20 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		again := n == 1
		if did := len(aside(t, db)) > before; did != again || strings.Contains(c.Stderr.String(), "msg=restored") != again {
			t.Errorf("start %d, %s: restored %v", n, request, did)
		}
	}
	if n := len(testbed.Entries(t, db)); n != 24 {
		t.Errorf("%d entries in the end", n)
	}
	// Replication goes on from there.
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	if n := len(testbed.Entries(t, restored)); n != 24 {
		t.Errorf("%d entries in the replica", n)
	}
}

// If it can't be made, the database is byte for byte as it was, and the app is
// not started.
func TestRestoreOverTheDatabaseThatFails(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	backedUp(t, s3.Settings(s3.URL(), db), db, 10, 3)
	before, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change string
		says   string
	}{
		"an empty replica": {"SLASHA_PATH_PREFIX=another/app", "there is nothing to restore"},
		"a wrong key":      {"SLASHA_ACCESS_KEY_ID=MADEUPWRONGKEY000000", "refused the access key"},
		"another bucket":   {"SLASHA_BUCKET=no-such-bucket", "there is no bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			w := worker(t, db, "--count", "1")
			code, out, said := testbed.Run(t, append(s3.Settings(s3.URL(), db), "SLASHA_RESTORE_PENDING=true", c.change), 40*time.Second, testbed.SlashaInit(t), append([]string{"--"}, w...)...)
			if code != 74 || out != "" || !strings.Contains(said, c.says) {
				t.Errorf("exit %d, %q, %s", code, out, said)
			}
			if after, err := os.ReadFile(db); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the database has changed: %v", err)
			}
			if list := aside(t, db); len(list) != 0 {
				t.Errorf("set aside: %v", list)
			}
		})
	}
}

// Killed at any moment, a restore is ended by the next start, and is made once.
func TestKillDuringARestoreOverTheDatabase(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "0", "--count", "400", "--size", "20000")...)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	rows := 400
	for round := range 12 {
		env := slices.Concat(settings, []string{fmt.Sprintf("SLASHA_RESTORE_PENDING=request-%d", round)})
		c := testbed.StartContainer(t, env, "sleep", "60")
		select {
		case <-time.After(time.Duration(random.IntN(600)) * time.Millisecond):
		case <-c.Done():
			t.Fatalf("round %d: it ended by itself: %s", round, c.Stderr)
		}
		c.Signal(syscall.SIGKILL)
		c.Wait(5 * time.Second)
		was := "before it was done"
		if strings.Contains(c.Stderr.String(), "msg=restored") {
			was = "when it was done"
		}

		c = testbed.StartContainer(t, env, worker(t, db, "--every", "0", "--count", "1")...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("round %d, killed %s: exit %d", round, was, code)
		}
		rows++
		if n := len(testbed.Entries(t, db)); n != rows {
			t.Fatalf("round %d, killed %s: %d entries, not %d", round, was, n, rows)
		}
		c = testbed.StartContainer(t, env, "true")
		c.Wait(20 * time.Second)
		if strings.Contains(c.Stderr.String(), "msg=restored") {
			t.Fatalf("round %d, killed %s: restored once more", round, was)
		}
		if n := len(aside(t, db)); n == 0 || n > 2 {
			t.Fatalf("round %d: %d databases are set aside", round, n)
		}
		t.Logf("round %d: killed %s", round, was)
	}
}

// Killed at any moment, the restore of a missing database is begun again, with
// nothing of the first left.
func TestKillDuringARestoreOfAMissingDatabase(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	backedUp(t, settings, db, 400, 400)
	for round := range 10 {
		vol.lose(t)
		db = vol.db(t)
		c := testbed.StartContainer(t, settings, "sleep", "60")
		select {
		case <-time.After(time.Duration(random.IntN(250)) * time.Millisecond):
		case <-c.Done():
			t.Fatalf("round %d: it ended by itself: %s", round, c.Stderr)
		}
		c.Signal(syscall.SIGKILL)
		c.Wait(5 * time.Second)
		_, err := os.Stat(db)
		t.Logf("round %d: killed with the database in place: %t", round, err == nil)

		c = testbed.StartContainer(t, settings, worker(t, db, "--every", "0", "--count", "1")...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("round %d: exit %d", round, code)
		}
		if n := len(testbed.Entries(t, db)); n != 401+round {
			t.Fatalf("round %d: %d entries, not %d", round, n, 401+round)
		}
		left, err := os.ReadDir(filepath.Join(filepath.Dir(db), ".app.db.slasha"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, f := range left {
			if f.Name() == "restore" {
				t.Fatalf("round %d: the scratch folder is left", round)
			}
		}
	}
}

// A damaged file of the replica is named, with the newest state that is whole. To
// take that is to begin a line that depends on nothing damaged: what is written
// from then on is what a restore gives.
func TestOnFromBeforeTheDamage(t *testing.T) {
	vol, bucket := newVolume(t), t.TempDir()
	db := vol.db(t)
	settings := []string{"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=file://" + bucket, "SLASHA_HEALTH_ADDR=127.0.0.1:0"}
	write := func(count int, more ...string) {
		t.Helper()
		c := testbed.StartContainer(t, append(settings, more...), worker(t, db, "--every", "0", "--count", fmt.Sprint(count))...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
	}
	for range 4 {
		write(5)
	}
	small, err := filepath.Glob(filepath.Join(bucket, "litestream", "ltx", "0", "*.ltx"))
	if err != nil || len(small) < 4 {
		t.Fatalf("%v, %v", small, err)
	}
	harmed := small[len(small)-2]
	b, err := os.ReadFile(harmed)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(harmed)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.WriteFile(harmed, b, 0o600), os.Chtimes(harmed, fi.ModTime(), fi.ModTime())); err != nil {
		t.Fatal(err)
	}
	vol.lose(t)
	db = vol.db(t)
	code, out, said := testbed.Run(t, settings, 30*time.Second, testbed.SlashaInit(t), "--", "echo", "started")
	offer := regexp.MustCompile(`is that of (\S+Z)`).FindStringSubmatch(said)
	if code != 74 || out != "" || offer == nil || !strings.Contains(said, filepath.Base(harmed)) {
		t.Fatalf("exit %d, %s%s", code, out, said)
	}
	write(2, "SLASHA_RESTORE_TIMESTAMP="+offer[1])
	entries := len(testbed.Entries(t, db))
	if entries < 7 || entries > 17 {
		t.Fatalf("%d entries, not those from before the damage and 2", entries)
	}
	write(3)
	vol.lose(t)
	db = vol.db(t)
	write(1)
	if n := len(testbed.Entries(t, db)); n != entries+4 {
		t.Errorf("%d entries after another loss, not %d", n, entries+4)
	}
	official := filepath.Join(t.TempDir(), "official.db")
	testbed.MustRun(t, nil, 30*time.Second, testbed.Tool(t, "litestream"), "restore", "-o", official, "file://"+filepath.Join(bucket, "litestream"))
	if n := len(testbed.Entries(t, official)); n != entries+4 {
		t.Errorf("%d entries by the official command, not %d", n, entries+4)
	}
}

// Plain true means once for each container: not again after a restart of the
// same one, and again in the next.
func TestRestorePendingTrueInDocker(t *testing.T) {
	needDocker(t)
	s3, img, data := testbed.StartS3(t), image(t), t.TempDir()
	options := []string{"--user", "0", "--volume", data + ":/data", "--env", "SLASHA_RESTORE_PENDING=true"}
	for _, kv := range s3.Settings(s3.URL(), "/data/app.db") {
		options = append(options, "--env", kv)
	}
	backedUp(t, s3.Settings(s3.URL(), filepath.Join(data, "app.db")), filepath.Join(data, "app.db"), 5, 1)
	for n := 1; n <= 2; n++ {
		cmd, name := inDocker(t, img, options, "/guestbook", "worker", "--db", "/data/app.db", "--every", "0", "--count", "1")
		for restart := range 2 {
			if restart == 0 {
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			} else {
				docker(t, "start", "--attach", name)
			}
			if got := len(aside(t, filepath.Join(data, "app.db"))); got != n {
				t.Errorf("container %d, restart %d: %d databases are set aside", n, restart, got)
			}
		}
	}
}

// Back in time, and on from there: the new line is the newest, and the old one,
// with what was written after that time, can still be restored, also when the
// small files of both have been compacted.
func TestPointInTime(t *testing.T) {
	vol, bucket := newVolume(t), t.TempDir()
	db := vol.db(t)
	settings := []string{"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=file://" + bucket, "SLASHA_HEALTH_ADDR=127.0.0.1:0"}
	write := func(count int, more ...string) *testbed.Container {
		t.Helper()
		c := testbed.StartContainer(t, append(settings, more...), worker(t, db, "--every", "1ms", "--count", fmt.Sprint(count))...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		return c
	}
	moment := func() string {
		time.Sleep(20 * time.Millisecond) // files are stamped with milliseconds
		defer time.Sleep(20 * time.Millisecond)
		return time.Now().UTC().Format(time.RFC3339Nano)
	}
	write(10)
	ten := moment()
	write(5)
	fifteen := moment()
	c := write(3, "SLASHA_RESTORE_PENDING=back", "SLASHA_RESTORE_TIMESTAMP="+ten)
	if n := len(testbed.Entries(t, db)); n != 13 {
		t.Fatalf("%d entries after going back, not 10 and 3", n)
	}
	if list := aside(t, db); len(list) != 1 || len(testbed.Entries(t, list[0])) != 15 {
		t.Errorf("set aside: %v", list)
	}
	write(2, "SLASHA_RESTORE_PENDING=back", "SLASHA_RESTORE_TIMESTAMP="+ten)

	// What a running container does half a minute later.
	replica := file.NewReplicaClient(filepath.Join(bucket, "litestream"))
	if _, err := litestream.NewCompactor(replica, slog.New(slog.DiscardHandler)).Compact(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	small, err := filepath.Glob(filepath.Join(bucket, "litestream", "ltx", "0", "*.ltx"))
	if err != nil || len(small) < 4 { // one of each life at least
		t.Fatalf("%v, %v", small, err)
	}
	for _, f := range small[:len(small)-1] {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		at   []string
		want int
	}{"the newest": {nil, 15}, "the old line's end": {[]string{"--timestamp", fifteen}, 15}, "of the new line": {[]string{"--timestamp", moment()}, 15}} {
		out := filepath.Join(t.TempDir(), "restored.db")
		testbed.MustRun(t, settings, 20*time.Second, testbed.SlashaInit(t), append([]string{"restore", "--output", out}, c.at...)...)
		entries := testbed.Entries(t, out)
		if len(entries) != c.want {
			t.Errorf("%s: %d entries", name, len(entries))
		}
		// Both lines have 15 entries; the old line's 11th was written before the way back.
		last, err := time.Parse(time.RFC3339Nano, fifteen)
		if err != nil {
			t.Fatal(err)
		}
		if isOld := entries[10].At.Before(last); isOld != (name == "the old line's end") {
			t.Errorf("%s is of the other line", name)
		}
	}
	if !strings.Contains(c.Stderr.String(), "a restore was asked for") {
		t.Errorf("the log does not say why: %s", c.Stderr)
	}

	// Before there was anything, and in the future.
	for at, want := range map[string]struct {
		code int
		says string
	}{"2020-01-01T00:00:00Z": {74, "no backup from before 2020-01-01T00:00:00Z"}, "2999-01-01T00:00:00Z": {78, "lies in the future"}, "yesterday": {78, "is no time"}} {
		code, _, said := testbed.Run(t, append(settings, "SLASHA_RESTORE_PENDING=x", "SLASHA_RESTORE_TIMESTAMP="+at), 20*time.Second, testbed.SlashaInit(t), "--", "true")
		if code != want.code || !strings.Contains(said, want.says) {
			t.Errorf("%s: exit %d, %s", at, code, said)
		}
	}
}

// The path is a link onto the volume, as images have it: what is restored goes
// where the link leads, and the link stays.
func TestTheDatabaseBehindALink(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	real := vol.db(t)
	link := filepath.Join(t.TempDir(), "app.db")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	settings := s3.Settings(s3.URL(), link)
	start := func(want int, more ...string) {
		t.Helper()
		c := testbed.StartContainer(t, append(settings, more...), worker(t, link, "--every", "0", "--count", "5")...)
		if code := c.Wait(20 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		if to, err := os.Readlink(link); err != nil || to != real {
			t.Fatalf("the link is %q, %v", to, err)
		}
		if n := len(testbed.Entries(t, real)); n != want {
			t.Fatalf("%d entries, not %d", n, want)
		}
	}
	start(5) // it leads to nothing yet
	start(10)
	vol.lose(t) // with its folder
	start(15)
	start(20, "SLASHA_RESTORE_PENDING=over-it")
	if len(aside(t, real)) != 1 {
		t.Error("nothing was set aside")
	}
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	if n := len(testbed.Entries(t, restored)); n != 20 {
		t.Errorf("%d entries in the replica", n)
	}

	circle := filepath.Join(t.TempDir(), "circle.db")
	if err := os.Symlink(circle, circle); err != nil {
		t.Fatal(err)
	}
	code, _, said := testbed.Run(t, s3.Settings(s3.URL(), circle), 10*time.Second, testbed.SlashaInit(t), "--", "true")
	if code != 78 || !strings.Contains(said, "leads to itself") {
		t.Errorf("exit %d, %s", code, said)
	}
}

// No room is told before anything is read, and the database stays as it is.
func TestNoRoomForARestore(t *testing.T) {
	needRoot(t)
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--every", "0", "--count", "100", "--size", "40000")...)
	if code := c.Wait(30 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	small := filepath.Join(t.TempDir(), "small")
	script := `mkdir -p $0 && mount -t tmpfs -o size=3m tmpfs $0 && echo old >$0/app.db && { "$@"; code=$?; cat $0/app.db; ls -A $0/.app.db.slasha; exit $code; }`
	code, out, said := testbed.Run(t, append(s3.Settings(s3.URL(), filepath.Join(small, "app.db")), "SLASHA_RESTORE_PENDING=1"), 20*time.Second,
		"unshare", "--mount", "sh", "-c", script, small, testbed.SlashaInit(t), "--", "echo", "started")
	if code != 74 || out != "old\n" || !strings.Contains(said, "has 2 MB free") {
		t.Errorf("exit %d, %q, %s", code, out, said)
	}
}

// A disk that runs full half way leaves the database as it was, and no litter.
func TestDiskFullDuringARestore(t *testing.T) {
	needRoot(t)
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--every", "0", "--count", "200", "--size", "40000")...)
	if code := c.Wait(30 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	proxy := testbed.StartProxy(t, s3.Addr)
	// The rows are all alike and the bucket holds 125 kB of them: at 5 kB/s the
	// disk is full long before the last has come.
	proxy.Toxic("bandwidth", "downstream", map[string]any{"rate": 5})
	small := filepath.Join(t.TempDir(), "small")
	script := `mkdir -p $0 && mount -t tmpfs -o size=24m tmpfs $0 && echo old >$0/app.db && { "$@"; code=$?; cat $0/app.db; ls -A $0/.app.db.slasha; exit $code; }`
	p := testbed.Start(t, append(s3.Settings(proxy.URL(), filepath.Join(small, "app.db")), "SLASHA_RESTORE_PENDING=1"),
		"unshare", "--mount", "sh", "-c", script, small, testbed.SlashaInit(t), "--", "echo", "started")
	testbed.Adopt(t, p).WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Restore.State != healthz.RestoreRunning || s.Restore.BytesDone == 0 {
			return fmt.Errorf("restore %+v", s.Restore)
		}
		return nil
	})
	filler, err := os.Create(fmt.Sprintf("/proc/%d/root%s/filler", p.Cmd.Process.Pid, small))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 64<<10))
	}
	_ = filler.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	proxy.Heal()
	code := p.Wait(60 * time.Second)
	if said := p.Stderr.String(); code != 74 || p.Stdout.String() != "old\n" || !strings.Contains(said, "no space left") {
		t.Errorf("exit %d, %q, %s", code, p.Stdout, said)
	}
}
