package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Restores that are requested while the app runs.

// inside runs one of our commands in the namespaces of a container, as docker
// exec does: a process that PID 1 did not start.
func inside(t *testing.T, pid1 int, settings []string, args ...string) *testbed.Process {
	t.Helper()
	return testbed.Start(t, settings, "nsenter", append([]string{"-t", strconv.Itoa(pid1), "-p", "-m", "--",
		"sh", "-c", `"$@"; code=$?; echo "exit $code"; exit $code`, "sh", testbed.SlashaInit(t)}, args...)...)
}

// A restore to a point in time while the app runs. A shell inside the container requests
// it, and lives to see the outcome. What was written since is set
// aside, and nothing of it is lost in the replica.
func TestRestoreWhileRunning(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	// A process that is not the app's and might write: it ends with the app.
	script := `sleep 1000 & exec "$@"`
	c := startIsolated(t, settings, append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
		testbed.SlashaInit(t), "--", "sh", "-c", script, "sh"}, worker(t, db, "--every", "5ms")...)...)
	pid1 := childOf(t, c.Cmd.Process.Pid)
	c.WaitAcked(50, 20*time.Second)
	least := len(c.Acked())
	if p := inside(t, pid1, settings, "sync"); p.Wait(20*time.Second) != 0 {
		t.Fatal(p.Stderr)
	}
	at := time.Now()
	most := len(c.Acked()) + 100
	c.WaitAcked(most, 20*time.Second)

	p := inside(t, pid1, settings, "restore", "--now", "--timestamp", at.UTC().Format(time.RFC3339Nano))
	if code := p.Wait(30 * time.Second); code != 0 || !strings.Contains(p.Stdout.String(), "exit 0") {
		t.Fatalf("exit %d: %s%s", code, p.Stdout, p.Stderr)
	}
	isRunning(t, c, 2)
	s := c.WaitHealth(10*time.Second, healthy)
	if s.Restore.State != healthz.RestoreDone || text(s.Restore.Reason) != "pending" || s.Phase != healthz.Running {
		t.Errorf("health says %s, %+v", s.Phase, s.Restore)
	}
	list := aside(t, db)
	if len(list) != 1 {
		t.Fatalf("set aside: %v", list)
	}
	old := testbed.Entries(t, list[0])
	if len(old) < most {
		t.Errorf("%d entries are kept of %d", len(old), most)
	}
	c.WaitAcked(len(c.Acked())+10, 20*time.Second)
	// Each life of the app reports which entry it wrote first.
	resumed := 0
	acked := c.Acked()
	for i := 1; i < len(acked); i++ {
		if acked[i] <= acked[i-1] {
			resumed = int(acked[i])
		}
	}
	if resumed <= least || resumed > most {
		t.Errorf("the app went on with entry %d, not one of %d to %d", resumed, least+1, most)
	}
	if err := syscall.Kill(pid1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(db), ".app.db.slasha", "control.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	// The new line and the old one.
	restored := restoreOfficially(t, s3)
	if n, live := len(testbed.Entries(t, restored)), len(testbed.Entries(t, db)); n != live {
		t.Errorf("the replica has %d entries, the database %d", n, live)
	}
	before := filepath.Join(t.TempDir(), "before.db")
	testbed.MustRun(t, settings, 30*time.Second, testbed.SlashaInit(t), "restore", "--output", before, "--txid", oldTXID(t, c))
	if n := len(testbed.Entries(t, before)); n != len(old) {
		t.Errorf("the old line is restored with %d entries, not %d", n, len(old))
	}
}

// oldTXID is the newest transaction before the restore: the one before the first
// of the new line.
func oldTXID(t *testing.T, c *testbed.Container) string {
	t.Helper()
	s := c.Stderr.String()
	_, after, ok := strings.Cut(s, "newest_before=")
	if !ok {
		t.Fatalf("the log does not name the newest transaction before the restore: %s", s)
	}
	return strings.Fields(after)[0]
}

// The same by docker exec, in an image without a shell.
func TestRestoreWhileRunningInDocker(t *testing.T) {
	t.Parallel()
	needDocker(t)
	s3, img, data := testbed.StartS3(t), image(t), t.TempDir()
	options := []string{"--user", "0", "--volume", data + ":/data"}
	for _, kv := range s3.Settings(s3.URL(), "/data/app.db") {
		options = append(options, "--env", kv)
	}
	cmd, name := inDocker(t, img, options, "/guestbook", "worker", "--db", "/data/app.db", "--every", "5ms")
	c := testbed.Adopt(t, testbed.StartCmd(t, cmd))
	c.WaitAcked(20, 20*time.Second)
	docker(t, "exec", name, "/slasha-init", "sync")
	docker(t, "exec", name, "/slasha-init", "restore", "--now")
	isRunning(t, c, 2)
	c.WaitAcked(len(c.Acked())+20, 20*time.Second)
	if list := aside(t, filepath.Join(data, "app.db")); len(list) != 1 {
		t.Errorf("set aside: %v", list)
	}
	docker(t, "stop", name)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	wantAll(t, testbed.Entries(t, filepath.Join(data, "app.db")), c.Acked())
}

// What can't be done is refused with its reason, and the app does not notice.
func TestRestoreWhileRunningIsRefused(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	settings := s3.Settings(proxy.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "5ms")...)
	c.WaitAcked(20, 20*time.Second)
	c.WaitHealth(20*time.Second, someSynced)
	now := func(want int, says string, args ...string) {
		t.Helper()
		code, out, said := testbed.Run(t, settings, 40*time.Second, testbed.SlashaInit(t), append([]string{"restore", "--now"}, args...)...)
		if code != want || !strings.Contains(said, says) {
			t.Errorf("%v: exit %d, %s%s", args, code, out, said)
		}
	}
	now(74, "there is no backup from before 2020-01-01T00:00:00Z", "--timestamp", "2020-01-01T00:00:00Z")
	now(78, `can't be used together with --now`, "--output", "/tmp/there")
	proxy.Cut()
	now(74, "refused: this can't be restored")
	proxy.Mend()
	if n := strings.Count(c.Stderr.String(), "msg=started"); n != 1 {
		t.Errorf("the app was started %d times", n)
	}
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	now(74, "slasha-init does not run there")

	alone := testbed.StartContainer(t, []string{"SLASHA_HEALTH_ADDR=127.0.0.1:0", "SLASHA_CONTROL_SOCKET=" + filepath.Join(t.TempDir(), "s")}, "sleep", "1000")
	isRunning(t, alone, 1)
	for _, command := range []string{"sync", "restore --now"} {
		code, _, said := testbed.Run(t, nil, 20*time.Second, testbed.SlashaInit(t),
			append(strings.Fields(command), "--control-socket", strings.TrimPrefix(alone.Cmd.Env[len(alone.Cmd.Env)-1], "SLASHA_CONTROL_SOCKET="))...)
		if code == 0 || !strings.Contains(said, "backups are off") {
			t.Errorf("%s: exit %d, %s", command, code, said)
		}
	}
}

// When what the app wrote last can't be uploaded, or the restore fails, the app
// goes on with its database, and not one entry is lost.
func TestRestoreWhileRunningFails(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct {
		says  string
		begin func(t *testing.T, s3 *testbed.S3, proxy *testbed.Proxy)
		end   func(proxy *testbed.Proxy)
	}{
		"the last upload": {
			"what the app wrote last can't be uploaded",
			func(_ *testing.T, _ *testbed.S3, proxy *testbed.Proxy) { proxy.Cut() },
			func(proxy *testbed.Proxy) { proxy.Mend() },
		},
		"a damaged file": {
			"the restore failed",
			func(t *testing.T, s3 *testbed.S3, _ *testbed.Proxy) { damageSnapshots(t, s3) },
			func(*testbed.Proxy) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s3, vol := testbed.StartS3(t), newVolume(t)
			db := vol.db(t)
			proxy := testbed.StartProxy(t, s3.Addr)
			settings := append(s3.Settings(proxy.URL(), db), "SLASHA_STOP_TIMEOUT=6s")
			// The app ends when the gate says that the fault is there.
			gate := filepath.Join(t.TempDir(), "gate")
			if err := syscall.Mkfifo(gate, 0o600); err != nil {
				t.Fatal(err)
			}
			script := `"$@" & app=$!; trap 'kill $app; wait $app; [ -e ` + gate + ` ] && cat ` + gate + `; exit 0' TERM; while :; do wait $app; done`
			c := testbed.StartContainer(t, settings, append([]string{"sh", "-c", script, "sh"}, worker(t, db, "--every", "5ms")...)...)
			c.WaitAcked(50, 20*time.Second)
			p := testbed.Start(t, settings, testbed.SlashaInit(t), "restore", "--now")
			c.WaitHealth(20*time.Second, func(s healthz.Status) error {
				if s.Phase != healthz.Restoring {
					return fmt.Errorf("the phase is %s", s.Phase)
				}
				return nil
			})
			fault.begin(t, s3, proxy)
			if err := os.WriteFile(gate, []byte("end\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(gate); err != nil {
				t.Fatal(err)
			}
			if code := p.Wait(60 * time.Second); code != 74 || !strings.Contains(p.Stderr.String(), fault.says) || !strings.Contains(p.Stderr.String(), "the app goes on") {
				t.Errorf("exit %d: %s", code, p.Stderr)
			}
			fault.end(proxy)
			isRunning(t, c, 2)
			c.WaitAcked(len(c.Acked())+20, 20*time.Second)
			if list := aside(t, db); len(list) != 0 {
				t.Errorf("set aside: %v", list)
			}
			if fault.says != "the restore failed" {
				c.WaitHealth(20*time.Second, healthy)
			}
			c.Signal(syscall.SIGTERM)
			c.Wait(20 * time.Second)
			wantAll(t, testbed.Entries(t, db), c.Acked())
			if fault.says != "the restore failed" {
				restored := restoreOfficially(t, s3)
				wantAll(t, testbed.Entries(t, restored), c.Acked())
			}
		})
	}
}

// The app itself may ask, as the user that it runs as, and nobody else.
func TestWhoMayAsk(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	dir, err := os.MkdirTemp("", "slasha-ask-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin := filepath.Join(dir, "slasha-init")
	testbed.CopyFile(t, testbed.SlashaInit(t), bin)
	data := filepath.Join(dir, "data")
	for _, err := range []error{os.Chmod(dir, 0o755), os.Chmod(bin, 0o755), os.Mkdir(data, 0o755), os.Chown(data, 4242, 4242)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	db := filepath.Join(data, "app.db")
	settings := []string{"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=file://" + t.TempDir(), "SLASHA_HEALTH_ADDR=off"}
	p := testbed.Start(t, settings, testbed.SlashaInit(t), "--user", "4242", "--",
		"sh", "-c", fmt.Sprintf("%s sync --db-path %s; echo said $?; exec sleep 1000", bin, db))
	testbed.WaitOutput(p, p.Stdout, "said 0", 20*time.Second, testbed.Contains("said 0"))

	ask := func() (string, error) {
		stranger := exec.Command(bin, "sync", "--db-path", db)
		stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4343, Gid: 4343}}
		out, err := stranger.CombinedOutput()
		return string(out), err
	}
	// Everybody may make files in a folder like /tmp, and replace none of others'.
	if err := os.Chmod(data, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if out, err := ask(); err == nil || !strings.Contains(out, "may write the database's folder") {
		t.Errorf("a stranger, in a folder like /tmp: %v, %s", err, out)
	}
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := ask(); err == nil || !strings.Contains(out, "only root, slasha-init's own user, the app's user, and users who may write the database's folder may ask") {
		t.Errorf("a stranger: %v, %s", err, out)
	}
	// With the health page off, the status comes by the same way.
	var s healthz.Status
	out := testbed.MustRun(t, settings, 10*time.Second, bin, "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.Phase != healthz.Running {
		t.Errorf("status: %v, %s", err, out)
	}
}
