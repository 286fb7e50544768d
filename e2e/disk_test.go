package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// disk is a small file system of its own for a database, which outlives the
// containers on it.
type disk struct {
	t      *testing.T
	holder *testbed.Process // has it mounted
	db     string           // for who is in there
	path   string           // for us
	filler *os.File
}

func newDisk(t *testing.T, size string) *disk {
	t.Helper()
	testbed.NeedRoot(t)
	dir := t.TempDir()
	holder := testbed.Start(t, nil, "unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec sleep 1000`, dir, size)
	testbed.WaitOutput(holder, holder.Stdout, "mounted", 10*time.Second, testbed.Contains("mounted"))
	d := &disk{t: t, holder: holder, db: filepath.Join(dir, "app.db")}
	d.path = fmt.Sprintf("/proc/%d/root%s", holder.Cmd.Process.Pid, dir)
	return d
}

// start runs a container on the disk.
func (d *disk) start(settings []string, app ...string) *testbed.Container {
	d.t.Helper()
	args := []string{"-t", strconv.Itoa(d.holder.Cmd.Process.Pid), "-m", "--", testbed.SlashaInit(d.t), "--"}
	return testbed.Adopt(d.t, testbed.Start(d.t, settings, "nsenter", append(args, app...)...))
}

// fill leaves so many percent of the disk free.
func (d *disk) fill(percent int64) {
	d.t.Helper()
	var err error
	if d.filler, err = os.Create(filepath.Join(d.path, "filler")); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = d.filler.Close() })
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.path, &st); err != nil {
		d.t.Fatal(err)
	}
	blocks := int64(st.Bavail) - int64(st.Blocks)*percent/100 //nolint:unconvert // other types on other architectures
	for ; blocks > 0; blocks /= 2 {                           // somebody else may take the last ones meanwhile
		fi, err := d.filler.Stat()
		if err != nil {
			d.t.Fatal(err)
		}
		err = syscall.Fallocate(int(d.filler.Fd()), 0, fi.Size(), blocks*int64(st.Bsize)) //nolint:unconvert // the same
		if err == nil && percent > 0 {
			return
		}
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			d.t.Fatal(err)
		}
	}
}

// free takes the filler away.
func (d *disk) free() {
	d.t.Helper()
	if err := os.Remove(d.filler.Name()); err != nil {
		d.t.Fatal(err)
	}
	_ = d.filler.Close()
}

// entries reads the database while nobody else does. SQLite does not follow the way
// through /proc, so it reads a copy.
func (d *disk) entries() []testbed.Entry {
	d.t.Helper()
	copied := filepath.Join(d.t.TempDir(), "app.db")
	for _, suffix := range []string{"", "-wal"} {
		if _, err := os.Stat(filepath.Join(d.path, "app.db"+suffix)); err == nil {
			testbed.CopyFile(d.t, filepath.Join(d.path, "app.db"+suffix), copied+suffix)
		}
	}
	return testbed.Entries(d.t, copied)
}

// The bucket is away for long, and the disk is nearly full: what piles up is
// dropped before the app has no room, health says so, a kill in the meantime loses
// nothing, and all is in the bucket in the end.
func TestABucketThatIsAwayForLong(t *testing.T) {
	t.Parallel()
	s3, d := testbed.StartS3(t), newDisk(t, "400m")
	proxy := testbed.StartProxy(t, s3.Addr)
	start := func(more ...string) *testbed.Container {
		t.Helper()
		return d.start(s3.Settings(proxy.URL(), d.db), worker(t, d.db, more...)...)
	}
	c := start("--every", "50ms", "--random", "--size", "10000", "--keep", "400")
	c.WaitAcked(60, 20*time.Second)
	c.WaitHealth(20*time.Second, someSynced)
	proxy.Cut()
	d.fill(4)
	c.WaitHealth(60*time.Second, func(s healthz.Status) error {
		if !strings.Contains(text(s.HealthError), "took too much room and was dropped") {
			return fmt.Errorf("health says %s", text(s.HealthError))
		}
		return nil
	})
	c.WaitAcked(len(c.Acked())+50, 20*time.Second)
	if files, err := os.ReadDir(filepath.Join(d.path, ".app.db-litestream", "ltx", "0")); err == nil && len(files) > 0 {
		t.Errorf("%d files pile up again", len(files))
	}
	c.Kill()
	proxy.Mend()
	c = start("--every", "0", "--count", "3")
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if said := c.Stderr.String(); strings.Contains(said, "stale") || strings.Contains(said, "msg=restored") {
		t.Errorf("the log: %s", said)
	}
	restored := restoreOfficially(t, s3)
	if got, live := testbed.Entries(t, restored), d.entries(); !slices.Equal(got, live) || len(live) < 100 {
		t.Errorf("the replica has %d entries, the database %d", len(got), len(live))
	}
}

// What a bucket takes in the middle of an outage, in a turn that fails later, is the
// database's own: the database does not become stale when the rest is dropped.
func TestADropAfterSomeUploads(t *testing.T) {
	t.Parallel()
	s3, d := testbed.StartS3(t), newDisk(t, "400m")
	road := testbed.StartBreaker(t, s3.Addr, 1)
	settings := s3.Settings("http://"+road.Addr, d.db)
	c := d.start(settings, worker(t, d.db, "--every", "50ms", "--random", "--size", "10000", "--keep", "400")...)
	c.WaitAcked(20, 20*time.Second)
	c.WaitHealth(20*time.Second, someSynced)
	captured := func() int {
		files, err := os.ReadDir(filepath.Join(d.path, ".app.db-litestream", "ltx", "0"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	road.Answer(1, 403, "AccessDenied")
	before := captured()
	testbed.Eventually(t, 60*time.Second, func() error {
		if n := captured() - before; n < 8 {
			return fmt.Errorf("%d files pile up", n)
		}
		return nil
	})
	broken := road.Broken()
	road.AnswerAfter(4, "/0000/", 403, "AccessDenied")
	testbed.Eventually(t, 20*time.Second, func() error {
		if road.Broken() == broken {
			return errors.New("it has not asked for more than it gets")
		}
		return nil
	})
	d.fill(4)
	c.WaitHealth(60*time.Second, func(s healthz.Status) error {
		if !strings.Contains(text(s.HealthError), "took too much room and was dropped") {
			return fmt.Errorf("health says %s", text(s.HealthError))
		}
		return nil
	})
	d.free()
	road.Heal()
	c.WaitHealth(60*time.Second, healthy)
	c.WaitAcked(len(c.Acked())+20, 20*time.Second)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if said := c.Stderr.String(); strings.Contains(said, "stale") || strings.Contains(said, "msg=restored") {
		t.Errorf("the log: %s", said)
	}
	restored := restoreOfficially(t, s3)
	if got, live := testbed.Entries(t, restored), d.entries(); !slices.Equal(got, live) || len(live) < 50 {
		t.Errorf("the replica has %d entries, the database %d", len(got), len(live))
	}
}

// The disk is full, and the bucket is there: SQLite refuses the app's commits, and
// what it has accepted before is in the bucket, or health says what is wrong. With
// room again all goes on, in the same process.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	s3, d := testbed.StartS3(t), newDisk(t, "32m")
	c := d.start(append(s3.Settings(s3.URL(), d.db), "SLASHA_MAX_LAG=2s"),
		worker(t, d.db, "--every", "20ms", "--random", "--size", "20000", "--stamp", "--persist")...)
	w := watch(t, c)
	c.WaitAcked(50, 20*time.Second)
	c.WaitHealth(20*time.Second, someSynced)
	d.fill(0)
	refusals := func(n int) {
		t.Helper()
		testbed.WaitOutput(c.Process, c.Stdout, "refusals", 60*time.Second, func(s string) (struct{}, bool) {
			return struct{}{}, strings.Count(s, "refused: ") >= n
		})
	}
	refusals(20)
	w.await(tellWithin, "all is in the bucket, or health reports the disk", func(s sample) bool {
		return s.PendingSince == nil && s.Healthy || !s.Healthy && strings.Contains(text(s.HealthError), "the local disk is full")
	})
	s, err := c.Health()
	t.Logf("full: healthy %v, %s, pending since %v, %v", s.Healthy, text(s.HealthError), s.PendingSince, err)
	refusals(strings.Count(c.Stdout.String(), "refused: ") + 50)
	d.free()
	freed := time.Now()
	acked := len(c.Acked())
	c.WaitAcked(acked+20, 30*time.Second)
	w.working(workload{}, freed)
	w.ending.Store(true)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(15 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	w.stop(c.Acks())
	restored := testbed.Entries(t, stopAndRestore(t, c, s3))
	wantAll(t, restored, c.Acked())
	if live := d.entries(); !slices.Equal(restored, live) {
		t.Errorf("the replica has %d entries, the database %d", len(restored), len(live))
	}
}
