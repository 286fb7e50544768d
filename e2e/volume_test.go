package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Instances on one volume that are not of one user, or have no locks.

// startAs runs a container as a user, on a volume that every user can write.
func startAs(t *testing.T, uid uint32, bin string, settings []string, app ...string) *testbed.Container {
	t.Helper()
	settings = append(settings, "PATH="+os.Getenv("PATH"))
	cmd := exec.Command("sh", append([]string{"-c", `umask 0; exec "$@"`, "sh", filepath.Join(bin, "slasha-init"), "--"}, app...)...)
	cmd.Env = settings
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return testbed.Adopt(t, testbed.StartCmd(t, cmd))
}

// A web and a worker that are images of different makers: the locks hold across
// users, a worker takes over from a web that was killed, and the next web, of a third
// user, follows.
func TestInstancesOfDifferentUsers(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	s3, dir := testbed.StartS3(t), openDir(t)
	for _, bin := range []string{testbed.SlashaInit(t), testbed.Guestbook(t)} {
		testbed.CopyFile(t, bin, filepath.Join(dir, filepath.Base(bin)))
	}
	if own := filepath.Base(testbed.SlashaInit(t)); own != "slasha-init" {
		if err := os.Rename(filepath.Join(dir, own), filepath.Join(dir, "slasha-init")); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(data, 0o777); err != nil { // whatever our umask is
		t.Fatal(err)
	}
	db := filepath.Join(data, "app.db")
	// SQLite gives a new database to its user alone, and to the files beside it what
	// the database has.
	testbed.MustRun(t, nil, 10*time.Second, testbed.Guestbook(t), "worker", "--db", db, "--count", "1")
	if err := os.Chmod(db, 0o666); err != nil {
		t.Fatal(err)
	}
	settings := append(s3.Settings(s3.URL(), db), shortTTL, "SLASHA_LOCK_TIMEOUT=2s")
	app := []string{filepath.Join(dir, "guestbook"), "worker", "--db", db, "--every", "20ms"}

	web := startAs(t, 12345, dir, settings, app...)
	web.WaitAcked(5, 20*time.Second)
	web.WaitHealth(20*time.Second, someSynced)
	second := startAs(t, 23456, dir, settings, app...)
	if code := second.Wait(20 * time.Second); code != 75 || !strings.Contains(second.Stderr.String(), "another instance holds this database: host ") {
		t.Errorf("a second web: exit %d, %s", code, second.Stderr)
	}
	helper := startAs(t, 23456, dir, append(settings, "SLASHA_PROCESS_TYPE=worker"), app...)
	helper.WaitAcked(5, 20*time.Second)
	helper.WaitHealth(20*time.Second, leaseIs("following"))
	web.Kill()
	helper.WaitHealth(20*time.Second, leaseIs("held"))
	next := startAs(t, 34567, dir, settings, app...)
	next.WaitAcked(5, 20*time.Second)
	next.WaitHealth(20*time.Second, leaseIs("following"))
	for _, c := range []*testbed.Container{next, helper} {
		c.Signal(syscall.SIGTERM)
		if code := c.Wait(20 * time.Second); code != 0 {
			t.Errorf("exit %d", code)
		}
	}
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), append(append(web.Acked(), helper.Acked()...), next.Acked()...))
}

// A volume without locks, as some network file systems are: that is logged once, and
// only the lease is left. It keeps the second instance away all the same.
func TestAVolumeWithoutLocks(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	start := func(more ...string) *testbed.Container {
		t.Helper()
		args := append([]string{"nolocks", testbed.SlashaInit(t), "--"}, worker(t, db, "--every", "20ms")...)
		return testbed.Adopt(t, testbed.Start(t, append(append(s3.Settings(s3.URL(), db), shortTTL), more...), testbed.Probe(t), args...))
	}
	first := start()
	first.WaitAcked(5, 20*time.Second)
	first.WaitHealth(20*time.Second, someSynced)
	first.WaitHealth(20*time.Second, leaseIs("held"))
	if n := strings.Count(first.Stderr.String(), "this volume can't be locked"); n != 1 {
		t.Errorf("that there are no locks is logged %d times: %s", n, first.Stderr)
	}
	second := start("SLASHA_LOCK_TIMEOUT=1s")
	second.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
	if code := second.Wait(20 * time.Second); code != 75 || len(second.Acked()) > 0 {
		t.Errorf("a second one: exit %d, %d commits", code, len(second.Acked()))
	}
	// Nothing here can show that this volume held the lease: after a kill the next start
	// waits until the lease's time is over.
	first.Kill()
	third := start()
	third.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
	third.WaitAcked(5, 30*time.Second)
	third.WaitHealth(20*time.Second, leaseIs("held"))
	wantAll(t, testbed.Entries(t, stopCleanlyAndRestore(t, third, s3)), append(first.Acked(), third.Acked()...))
}
