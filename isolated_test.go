package main_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// emptyRoot makes a root file system that holds our binary and the sample app,
// and nothing else: no libc, no shell, no /tmp, no /proc, no /etc/passwd, no CA.
func emptyRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	copyFile(t, testbed.Released(t), filepath.Join(root, "slasha-init"))
	copyFile(t, testbed.Guestbook(t), filepath.Join(root, "guestbook"))
	if err := os.Mkdir(filepath.Join(root, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for chroot and PID namespaces")
	}
}

// startIsolated runs slasha-init under a command that changes the world around
// it, like chroot or unshare.
func startIsolated(t *testing.T, settings []string, command ...string) *testbed.Container {
	t.Helper()
	return testbed.Adopt(t, testbed.Start(t, settings, command[0], command[1:]...))
}

func TestRunsInAnEmptyRoot(t *testing.T) {
	needRoot(t)
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
	needRoot(t)
	s3, root := testbed.StartS3TLS(t), emptyRoot(t)
	copyFile(t, s3.CA, filepath.Join(root, "ca.pem"))
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

// The app often runs as our own user; the bucket's keys are still not for it.
func TestTheAppCannotReadOurSecrets(t *testing.T) {
	needRoot(t)
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
	copyFile(t, testbed.SlashaInit(t), binary)
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

func TestRunsAsPID1(t *testing.T) {
	needRoot(t)
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
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
}

func childOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(string(b), &child); err != nil {
		t.Fatalf("children of %d are %q: %v", pid, b, err)
	}
	return child
}
