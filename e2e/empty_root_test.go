package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// Images and namespaces that hold only what they must.

func TestRunsInAnEmptyRoot(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	s3, root := testbed.StartS3(t), emptyRoot(t)
	settings := s3.Settings(s3.URL(), "/data/app.db")
	command := []string{"chroot", root, "/slasha-init", "--", "/guestbook", "worker", "--db", "/data/app.db"}

	c := startIsolated(t, settings, append(command, "--every", "5ms")...)
	c.WaitAcked(50, 20*time.Second)
	c.WaitHealth(10*time.Second, healthy)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	acked := c.Acked()
	if err := os.RemoveAll(filepath.Join(root, "data")); err != nil {
		t.Fatal(err)
	}
	c = startIsolated(t, settings, append(command, "--count", "1")...)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	wantAll(t, testbed.Entries(t, filepath.Join(root, "data", "app.db")), append(acked, c.Acked()...))
}

// TLS in an image that has no root certificates: a CA of one's own is named in
// SSL_CERT_FILE, and without it the refusal says so. AWS_CA_BUNDLE is the app's.
func TestTLSInAnEmptyRoot(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	s3, root := testbed.StartS3TLS(t), emptyRoot(t)
	testbed.CopyFile(t, s3.CA, filepath.Join(root, "ca.pem"))
	settings := append(s3.Settings(s3.URL(), "/data/app.db"), "AWS_CA_BUNDLE=/no/such/file")
	command := []string{"chroot", root, "/slasha-init", "--", "/guestbook", "worker", "--db", "/data/app.db", "--count", "3"}

	code, out, said := testbed.Run(t, settings, 30*time.Second, command[0], command[1:]...)
	if code != 74 || out != "" || !strings.Contains(said, "unknown authority") || !strings.Contains(said, "SSL_CERT_FILE") {
		t.Errorf("exit %d, %q, %s", code, out, said)
	}
	c := startIsolated(t, append(settings, "SSL_CERT_FILE=/ca.pem"), command...)
	if code := c.Wait(20 * time.Second); code != 0 || len(c.Acked()) != 3 {
		t.Errorf("exit %d, %d commits", code, len(c.Acked()))
	}
}

// In an empty image a user is a number, and the restored database belongs to the owner
// of its folder.
func TestUserInAnEmptyRoot(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	s3, root := testbed.StartS3(t), emptyRoot(t)
	data := filepath.Join(root, "data")
	settings := append(s3.Settings(s3.URL(), "/data/app.db"), "SLASHA_USER=12345:678")
	for n := range 2 { // at the second time restored
		if err := os.Chown(data, 12345, 678); err != nil {
			t.Fatal(err)
		}
		c := startIsolated(t, settings, "chroot", root, "/slasha-init", "--", "/guestbook", "worker", "--db", "/data/app.db", "--count", "3")
		if code := c.Wait(20 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		if n == 1 && !strings.Contains(c.Stderr.String(), "msg=restored") {
			t.Error("not restored")
		}
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(data, "app.db"), &st); err != nil || st.Uid != 12345 || st.Gid != 678 {
			t.Errorf("the database belongs to %d:%d, %v", st.Uid, st.Gid, err)
		}
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	code, _, stderr := testbed.Run(t, nil, 10*time.Second, "chroot", root, "/slasha-init", "--health-addr=off", "--user=nobody", "--", "/guestbook")
	if code != 78 || !strings.Contains(stderr, `--user "nobody": can't be looked up in this image; write a number`) {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestRunsAsPID1(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	// A helper in the background, in a session of its own, that ignores TERM:
	// when slasha-init has ended, the whole namespace must be empty.
	script := fmt.Sprintf(`setsid sh -c 'trap "" TERM; while :; do sleep 0.1; done' & exec %s worker --db %s --every 5ms`, testbed.Guestbook(t), db)
	c := startIsolated(t, s3.Settings(s3.URL(), db), "unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
		testbed.SlashaInit(t), "--stop-timeout", "5s", "--", "sh", "-c", script)
	c.WaitAcked(50, 20*time.Second)
	s := c.WaitHealth(10*time.Second, healthy)
	if len(s.Processes) != 1 || s.Processes[0].PID < 2 || s.Processes[0].PID > 20 {
		t.Errorf("processes are %+v, not those of a new PID namespace", s.Processes)
	}
	// unshare is not PID 1 and ignores the signal; its child is slasha-init.
	began := time.Now()
	if err := syscall.Kill(childOf(t, c.Cmd.Process.Pid), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := c.Wait(8 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	t.Logf("stopped in %s, with a helper that ignores TERM", time.Since(began).Round(time.Millisecond))
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
}

// Where another init is PID 1, everything works as if we were.
func TestUnderAnotherInit(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	if _, err := exec.LookPath("tini"); err != nil {
		t.Skip("tini is not installed")
	}
	p := testbed.Start(t, nil, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "tini", "--",
		testbed.SlashaInit(t), "--health-addr=off", "--", testbed.Probe(t), "orphans", "50")
	testbed.WaitOutput(p, p.Stdout, "ready", 10*time.Second, testbed.Contains("ready"))
	if err := syscall.Kill(childOf(t, p.Cmd.Process.Pid), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.Wait(10 * time.Second); code != 7 {
		t.Errorf("exit %d", code)
	}
}

// The app often runs as our own user; the bucket's keys are still not for it.
func TestTheAppCannotReadOurSecrets(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	// As root one may read everything, so both run as somebody else, who may not
	// be let into the folder of the repository.
	dir, err := os.MkdirTemp("", "slasha-init-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "slasha-init")
	testbed.CopyFile(t, testbed.SlashaInit(t), binary)
	script := `cat /proc/$PPID/environ; echo environ $?; cat /proc/$PPID/mem; echo mem $?; ls /proc/$PPID/fd; echo fd $?`
	code, out, _ := testbed.Run(t, []string{"LITESTREAM_SECRET_ACCESS_KEY=wrong-secret-3333", "SLASHA_HEALTH_ADDR=off"}, 10*time.Second,
		"setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", binary, "--", "sh", "-c", script)
	if code != 0 || strings.Contains(out, "wrong-secret") {
		t.Errorf("exit %d, %q", code, out)
	}
	for _, refused := range []string{"environ 1", "mem 1", "fd 2"} {
		if !strings.Contains(out, refused) {
			t.Errorf("no %q in %q", refused, out)
		}
	}
}
