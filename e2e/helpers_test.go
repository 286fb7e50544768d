package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// volume is a folder for a database, which can be lost.
type volume struct{ dir string }

func newVolume(t *testing.T) *volume { return &volume{filepath.Join(t.TempDir(), "data")} }

func (v *volume) db(t *testing.T) string {
	t.Helper()
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(v.dir, "app.db")
}

func (v *volume) lose(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(v.dir); err != nil {
		t.Fatal(err)
	}
}

func worker(t *testing.T, db string, more ...string) []string {
	return append([]string{testbed.Guestbook(t), "worker", "--db", db}, more...)
}

// shortTTL is for tests that wait until a lease is over.
const shortTTL = "SLASHA_LEASE_TTL=3s"

// hosts are volumes of the same app on several hosts, with one replica.
type hosts struct {
	t      *testing.T
	s3     *testbed.S3
	proxy  *testbed.Proxy
	volume map[string]string // path of the database by host
}

func newHosts(t *testing.T, names ...string) *hosts {
	h := &hosts{t: t, s3: testbed.StartS3(t), volume: make(map[string]string)}
	h.proxy = testbed.StartProxy(t, h.s3.Addr)
	for _, name := range names {
		vol := newVolume(t)
		h.volume[name] = vol.db(t)
	}
	return h
}

func (h *hosts) start(host string, app []string, more ...string) *testbed.Container {
	h.t.Helper()
	return testbed.StartContainer(h.t, append(append(h.s3.Settings(h.proxy.URL(), h.volume[host]), shortTTL), more...), app...)
}

// write lets the app on a host write so many entries, and returns what was said.
func (h *hosts) write(host string, count, want int, more ...string) string {
	h.t.Helper()
	c := h.start(host, worker(h.t, h.volume[host], "--every", "0", "--count", fmt.Sprint(count)), more...)
	if code := c.Wait(60 * time.Second); code != want {
		h.t.Fatalf("%s: exit %d, not %d", host, code, want)
	}
	return c.Stderr.String()
}

func (h *hosts) entries(host string) int {
	h.t.Helper()
	return len(testbed.Entries(h.t, h.volume[host]))
}

// replicated counts what the official command restores.
func (h *hosts) replicated() int {
	h.t.Helper()
	restored := restoreOfficially(h.t, h.s3)
	return len(testbed.Entries(h.t, restored))
}

// sameFiles looks whether each transaction that a host has captured is the very
// one that the replica has: compaction takes those that are at hand for those.
func (h *hosts) sameFiles(host string) {
	h.t.Helper()
	dir, name := filepath.Split(h.volume[host])
	local, err := filepath.Glob(filepath.Join(dir, "."+name+"-litestream", "ltx", "0", "*.ltx"))
	if err != nil || len(local) == 0 {
		h.t.Fatalf("%v, %v", local, err)
	}
	for _, path := range local {
		ours, err := os.ReadFile(path)
		if err != nil {
			h.t.Fatal(err)
		}
		theirs, err := os.ReadFile(filepath.Join(h.s3.Dir, h.s3.Bucket, "apps/guestbook/0000", filepath.Base(path)))
		if err != nil || !bytes.Equal(ours, theirs) {
			h.t.Errorf("%s is not what the replica has: %v", path, err)
		}
	}
}

// gate holds an app back until the gate is opened.
func gate(t *testing.T, app []string) (command []string, open func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gate")
	return append([]string{"sh", "-c", `until [ -e "$0" ]; do sleep 0.02; done; exec "$@"`, file}, app...), func() {
		t.Helper()
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func healthy(s healthz.Status) error {
	if !s.Healthy {
		return fmt.Errorf("unhealthy: %s", text(s.HealthError))
	}
	return nil
}

// someSynced says that something was uploaded: an app that writes all the time has
// always something that is not.
func someSynced(s healthz.Status) error {
	if s.LastSyncedAt == nil {
		return errors.New("nothing is uploaded yet")
	}
	return healthy(s)
}

// allSynced says that nothing is pending, and something was uploaded.
func allSynced(s healthz.Status) error {
	if s.LastSyncedAt == nil || s.PendingSince != nil {
		return errors.New("not all is uploaded")
	}
	return healthy(s)
}

func inPhase(want healthz.Phase) func(healthz.Status) error {
	return func(s healthz.Status) error {
		if s.Phase != want {
			return fmt.Errorf("the phase is %s", s.Phase)
		}
		return nil
	}
}

func leaseIs(want string) func(healthz.Status) error {
	return func(s healthz.Status) error {
		if s.Lease.State != want {
			return fmt.Errorf("the lease is %s, not %s", s.Lease.State, want)
		}
		return nil
	}
}

// isRunning waits until the app has been started for the nth time.
func isRunning(t *testing.T, c *testbed.Container, nth int) {
	t.Helper()
	testbed.WaitOutput(c.Process, c.Stderr, "started", 20*time.Second, func(s string) (struct{}, bool) {
		return struct{}{}, strings.Count(s, "msg=started") >= nth
	})
}

func text(s *string) string {
	if s == nil {
		return "(none)"
	}
	return *s
}

// wantAll fails the test unless every acknowledged id is among the entries.
func wantAll(t *testing.T, entries []testbed.Entry, acked []int64) {
	t.Helper()
	have := make(map[int64]bool, len(entries))
	for _, e := range entries {
		have[e.ID] = true
	}
	var lost []int64
	for _, id := range acked {
		if !have[id] {
			lost = append(lost, id)
		}
	}
	if len(acked) == 0 || len(lost) > 0 {
		t.Fatalf("of %d acknowledged commits %d are lost: %v", len(acked), len(lost), lost[:min(len(lost), 10)])
	}
}

// noSecret fails the test when something that the container said holds a secret.
func noSecret(t *testing.T, said ...string) {
	t.Helper()
	for _, s := range said {
		for _, secret := range []string{testbed.UserSecret, testbed.UserKey, "wrong-secret"} {
			if strings.Contains(s, secret) {
				t.Errorf("a secret was printed: %s", s)
			}
		}
	}
}

// stopAndRestore stops the container and returns what the official command
// restores.
func stopAndRestore(t *testing.T, c *testbed.Container, s3 *testbed.S3) string {
	t.Helper()
	select {
	case <-c.Done():
	default:
		c.Signal(syscall.SIGTERM)
	}
	c.Wait(10 * time.Second)
	return restoreOfficially(t, s3)
}

// stopCleanlyAndRestore is the same of a container that has to end with 0.
func stopCleanlyAndRestore(t *testing.T, c *testbed.Container, s3 *testbed.S3) string {
	t.Helper()
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	return restoreOfficially(t, s3)
}

// restoreOfficially restores the replica with the official command, and returns the
// database.
func restoreOfficially(t *testing.T, s3 *testbed.S3) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(file)
	return file
}

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

// damageSnapshots spoils every file that a restore could begin with.
func damageSnapshots(t *testing.T, s3 *testbed.S3) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(s3.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), "0000000000000001-") {
			return err
		}
		n++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := len(b) / 3; i < len(b)/2; i++ {
			b[i] ^= 0x55
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0) // the server keeps notes with the file
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Fatal("found nothing to damage")
	}
}

// openDir is a temporary folder that every user can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "slasha-init-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startIsolated runs slasha-init under a command that changes the world around
// it, like chroot or unshare.
func startIsolated(t *testing.T, settings []string, command ...string) *testbed.Container {
	t.Helper()
	return testbed.Adopt(t, testbed.Start(t, settings, command[0], command[1:]...))
}

// emptyRoot makes a root file system that holds our binary and the sample app,
// and nothing else: no libc, no shell, no /tmp, no /proc, no /etc/passwd, no CA.
func emptyRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	testbed.CopyFile(t, testbed.Released(t), filepath.Join(root, "slasha-init"))
	testbed.CopyFile(t, testbed.Guestbook(t), filepath.Join(root, "guestbook"))
	if err := os.Mkdir(filepath.Join(root, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// childOf is the child that a process has, as unshare has its PID 1.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	children := testbed.Children(pid)
	if len(children) != 1 {
		t.Fatalf("the children of %d are %v", pid, children)
	}
	return children[0]
}

// raced reports whether the binary has been built with the race detector.
func raced() bool { return os.Getenv("SLASHA_TEST_BINARY") != "" }

// chosenSeed is that of SLASHA_SEED, or any.
func chosenSeed(t *testing.T) uint64 {
	t.Helper()
	s := os.Getenv("SLASHA_SEED")
	if s == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}
