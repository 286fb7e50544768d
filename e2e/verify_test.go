package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// The replica is restored and checked while the app writes; when it can't be
// restored any more, health says so, though uploads work.
func TestVerifyInterval(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := append(s3.Settings(s3.URL(), db), "SLASHA_VERIFY_INTERVAL=300ms")
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "5ms")...)
	verified := func(after *healthz.Time) healthz.Status {
		t.Helper()
		return c.WaitHealth(20*time.Second, func(s healthz.Status) error {
			if s.LastVerifiedAt == nil || after != nil && !time.Time(*s.LastVerifiedAt).After(time.Time(*after)) {
				return fmt.Errorf("last verified at %v", s.LastVerifiedAt)
			}
			return healthy(s)
		})
	}
	c.WaitAcked(20, 20*time.Second)
	first := verified(nil)
	last := verified(first.LastVerifiedAt)

	damageSnapshots(t, s3)
	s := c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Healthy {
			return fmt.Errorf("still healthy")
		}
		return nil
	})
	if !strings.Contains(text(s.HealthError), "verifying the replica failed") || !strings.Contains(text(s.HealthError), "0000000000000001-0000000000000001.ltx") {
		t.Errorf("health says %s", text(s.HealthError))
	}
	if s.LastVerifiedAt == nil || time.Time(*s.LastVerifiedAt).Before(time.Time(*last.LastVerifiedAt)) {
		t.Errorf("last verified at %v", s.LastVerifiedAt)
	}
	metrics := c.Metrics()
	if !strings.Contains(metrics, "\nslasha_init_verify_failed 1\n") {
		t.Errorf("metrics: %s", metrics)
	}
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(db), ".app.db.slasha", "drill")); !os.IsNotExist(err) {
		t.Errorf("the scratch folder is still there: %v", err)
	}
	// The next start knows it before its first drill.
	c = testbed.StartContainer(t, append(settings, "SLASHA_VERIFY_INTERVAL=24h"), worker(t, db, "--every", "5ms")...)
	c.WaitAcked(1, 20*time.Second)
	if s, err := c.Health(); err != nil || s.Healthy || !strings.Contains(text(s.HealthError), "verifying the replica failed") {
		t.Errorf("after a restart: %+v, %v", s.Healthy, err)
	}
}
