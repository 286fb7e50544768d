package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Restores of a missing database: what stops them, and what they leave.

func TestStopDuringARestoreLeavesNothing(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	db := vol.db(t)
	settings := s3.Settings(proxy.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--count", "1500", "--every", "0", "--size", "4000")...)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	vol.lose(t)
	proxy.Toxic("bandwidth", "downstream", map[string]any{"rate": 10})
	vol.db(t)
	c = testbed.StartContainer(t, settings, worker(t, db)...)
	c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Phase != healthz.Restoring {
			return fmt.Errorf("phase %s", s.Phase)
		}
		return nil
	})
	began := time.Now()
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(5 * time.Second); code != 143 {
		t.Errorf("exit %d, want 143", code)
	}
	t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond))
	var left []string
	_ = filepath.WalkDir(vol.dir, func(path string, d os.DirEntry, _ error) error {
		if d != nil && !d.IsDir() {
			left = append(left, path)
		}
		return nil
	})
	if len(left) > 0 || c.Stdout.String() != "" {
		t.Errorf("left behind: %v; the app said %q", left, c.Stdout)
	}
}

// Killed at any moment, the restore of a missing database is begun again, with
// nothing of the first left.
func TestKillDuringARestoreOfAMissingDatabase(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	offer := regexp.MustCompile(`is from (\S+Z)`).FindStringSubmatch(said)
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

// The path is a link onto the volume, as images have it: what is restored goes
// where the link leads, and the link stays.
func TestTheDatabaseBehindALink(t *testing.T) {
	t.Parallel()
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
	restored := restoreOfficially(t, s3)
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

// A lack of room is reported before anything is read, and the database stays as it is.
func TestNoRoomForARestore(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
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
	t.Parallel()
	testbed.NeedRoot(t)
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
