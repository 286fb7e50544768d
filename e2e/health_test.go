package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// What a person or a poller gets to know.

func TestHealthPages(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--every", "100ms")...)
	c.WaitAcked(1, 10*time.Second)
	s := c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil || s.TXID == nil {
			return errors.New("nothing uploaded yet")
		}
		return healthy(s)
	})
	if s.Phase != healthz.Running || !s.Enabled || s.DBPath != db || s.Replica != "s3://test-bucket/apps/guestbook" ||
		len(s.Processes) != 1 || s.Processes[0].Type != "web" || s.Processes[0].PID == 0 {
		t.Errorf("status is %+v", s)
	}
	for _, method := range []string{"GET", "HEAD"} {
		for path, want := range map[string]string{
			"/healthz": "application/json; charset=utf-8", "/livez": "text/plain; charset=utf-8",
			"/readyz": "text/plain; charset=utf-8", "/": "text/html; charset=utf-8", "/metrics": "text/plain",
		} {
			code, head := c.Get(method, path)
			if code != 200 || !strings.HasPrefix(head.Get("Content-Type"), want) {
				t.Errorf("%s %s answers %d with %s", method, path, code, head.Get("Content-Type"))
			}
		}
	}
	if code, _ := c.Get("POST", "/healthz"); code != 405 {
		t.Errorf("POST answers %d", code)
	}
	env := []string{"SLASHA_HEALTH_ADDR=" + c.HealthAddr}
	if code, out, _ := testbed.Run(t, env, 10*time.Second, testbed.SlashaInit(t), "healthcheck"); code != 0 || out != "healthy\n" {
		t.Errorf("healthcheck exits with %d and says %q", code, out)
	}
	// With port 0 nobody here knows which port it took, so the commands use the socket.
	if code, out, _ := testbed.Run(t, []string{"SLASHA_DB_PATH=" + db, "SLASHA_HEALTH_ADDR=127.0.0.1:0"}, 10*time.Second, testbed.SlashaInit(t), "healthcheck"); code != 0 || out != "healthy\n" {
		t.Errorf("healthcheck of port 0 exits with %d and says %q", code, out)
	}
	if out := testbed.MustRun(t, env, 10*time.Second, testbed.SlashaInit(t), "status"); !strings.Contains(out, "s3://test-bucket/apps/guestbook") {
		t.Errorf("status says %q", out)
	}
	s3.Down()
	c.WaitHealth(30*time.Second, func(s healthz.Status) error {
		if s.Healthy {
			return errors.New("still healthy")
		}
		return nil
	})
	if code, out, _ := testbed.Run(t, env, 10*time.Second, testbed.SlashaInit(t), "healthcheck"); code != 1 || !strings.Contains(out, "bucket") {
		t.Errorf("healthcheck of an unhealthy container exits with %d and says %q", code, out)
	}
}

func TestHealthDuringALongRestore(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	db := vol.db(t)
	settings := s3.Settings(proxy.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--count", "1500", "--every", "0", "--size", "4000")...)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	acked := c.Acked()
	vol.lose(t)

	// LZ4 makes little of the entries' text, so the line must be slow.
	proxy.Toxic("bandwidth", "downstream", map[string]any{"rate": 40}) // kB/s
	c = testbed.StartContainer(t, settings, worker(t, db, "--count", "1", "--every", "10m")...)
	s := c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Phase != healthz.Restoring || s.Restore.BytesDone == 0 {
			return fmt.Errorf("phase %s, %d bytes", s.Phase, s.Restore.BytesDone)
		}
		return nil
	})
	if s.Healthy || s.Restore.State != healthz.RestoreRunning || text(s.Restore.Reason) != "missing" ||
		s.Restore.BytesTotal < s.Restore.BytesDone || s.Restore.BytesPerSecond == 0 || s.Restore.SecondsLeft == nil {
		t.Errorf("restore is reported as %+v, healthy %v", s.Restore, s.Healthy)
	}
	if code, _ := c.Get("GET", "/readyz"); code != 503 {
		t.Errorf("/readyz answers %d during a restore", code)
	}
	if code, _ := c.Get("GET", "/livez"); code != 200 {
		t.Errorf("/livez answers %d during a restore", code)
	}
	proxy.Heal()
	done := c.WaitHealth(30*time.Second, func(s healthz.Status) error {
		if s.Restore.State != healthz.RestoreDone {
			return fmt.Errorf("restore is %s", s.Restore.State)
		}
		return healthy(s)
	})
	if done.Restore.BytesDone == 0 || done.Restore.TXID == nil || done.Restore.TookSeconds == 0 {
		t.Errorf("a finished restore is reported as %+v", done.Restore)
	}
	c.WaitAcked(1, 5*time.Second)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	wantAll(t, testbed.Entries(t, db), append(acked, c.Acked()...))
}

func TestKeyRevokedWhileRunning(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--count", "1", "--every", "10m")...)
	c.WaitAcked(1, 10*time.Second)
	c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil || s.PendingSince != nil || text(s.TXID) != text(s.ReplicaTXID) {
			return errors.New("not idle yet")
		}
		return healthy(s)
	})
	s3.RevokeUser()
	began := time.Now()
	// Nothing is written: only the check of the idle database can notice it.
	s := c.WaitHealth(45*time.Second, func(s healthz.Status) error {
		if s.Healthy || !strings.Contains(text(s.HealthError), "refused the access key") {
			return fmt.Errorf("health_error is %q", text(s.HealthError))
		}
		return nil
	})
	t.Logf("reported after %s: %s", time.Since(began).Round(time.Second), text(s.HealthError))
	noSecret(t, c.Stderr.String(), text(s.HealthError))
}
