package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// These tests run the built binary against a real S3 server. Each of them is a
// story that a user could tell.

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

func healthy(s healthz.Status) error {
	if !s.Healthy {
		return fmt.Errorf("unhealthy: %s", text(s.HealthError))
	}
	return nil
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

func TestEveryCommitIsBackAfterTheVolumeIsLost(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	settings := s3.Settings(s3.URL(), vol.db(t))

	c := testbed.StartContainer(t, settings, worker(t, vol.db(t), "--every", "2ms")...)
	c.WaitAcked(500, 30*time.Second)
	c.WaitHealth(10*time.Second, healthy)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d after a clean stop", code)
	}
	acked := c.Acked()
	vol.lose(t)

	official := filepath.Join(t.TempDir(), "official.db")
	s3.OfficialRestore(official)
	wantAll(t, testbed.Entries(t, official), acked)

	c = testbed.StartContainer(t, settings, worker(t, vol.db(t), "--count", "1")...)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	restored := testbed.Entries(t, vol.db(t))
	wantAll(t, restored, append(acked, c.Acked()...))
	if want := len(acked) + 1; len(restored) > want+1 { // one commit may have returned unseen
		t.Errorf("%d entries, of which %d were acknowledged", len(restored), want)
	}
}

func TestTenCyclesUnderAFastWriterLoseNothing(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	var acked []int64
	for cycle := range 10 {
		db := vol.db(t)
		c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--every", "0")...)
		c.WaitAcked(2000, 30*time.Second)
		began := time.Now()
		c.Signal(syscall.SIGTERM)
		if code := c.Wait(9500 * time.Millisecond); code != 0 {
			t.Fatalf("cycle %d: exit %d", cycle, code)
		}
		acked = append(acked, c.Acked()...)
		t.Logf("cycle %d: %d commits so far, stopped in %s", cycle, len(acked), time.Since(began).Round(time.Millisecond))
		vol.lose(t)
	}
	final := filepath.Join(t.TempDir(), "final.db")
	s3.OfficialRestore(final)
	wantAll(t, testbed.Entries(t, final), acked)
}

// refusals are ways in which a bucket can be out of reach, with what a person
// is told.
func refusals(t *testing.T) map[string]struct {
	change []string // settings in the place of the right ones
	want   []string // parts of the sentence
} {
	type refusal = struct{ change, want []string }
	return map[string]refusal{
		"wrong secret":      {[]string{"SLASHA_SECRET_ACCESS_KEY=wrong-secret-2222222222"}, []string{"test-bucket", "secret access key is wrong", "SignatureDoesNotMatch"}},
		"wrong key":         {[]string{"SLASHA_ACCESS_KEY_ID=NOSUCHKEY00000000000"}, []string{"test-bucket", "refused the access key", "InvalidAccessKeyId"}},
		"wrong bucket":      {[]string{"SLASHA_BUCKET=no-such-bucket"}, []string{"there is no bucket", "no-such-bucket"}},
		"nothing listening": {[]string{"SLASHA_ENDPOINT=http://" + testbed.FreeAddr(t)}, []string{"can't be reached", "connection refused"}},
		"unknown host":      {[]string{"SLASHA_ENDPOINT=http://no-such-host.invalid:9000"}, []string{"can't be reached", "no-such-host.invalid"}},
	}
}

func TestMissingDatabaseAndBucketOutOfReach(t *testing.T) {
	s3 := testbed.StartS3(t)
	for name, r := range refusals(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vol := newVolume(t)
			db := vol.db(t)
			p := testbed.Start(t, append(s3.Settings(s3.URL(), db), r.change...), testbed.SlashaInit(t), append([]string{"--"}, worker(t, db)...)...)
			if code := p.Wait(45 * time.Second); code != 74 {
				t.Errorf("exit %d, want 74", code)
			}
			for _, want := range r.want {
				if !strings.Contains(p.Stderr.String(), want) {
					t.Errorf("stderr does not say %q", want)
				}
			}
			if _, err := os.Stat(db); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a database was begun: %v", err)
			}
			if p.Stdout.String() != "" {
				t.Errorf("the app was started: %s", p.Stdout)
			}
			noSecret(t, p.Stderr.String())
		})
	}
}

func TestPresentDatabaseAndBucketOutOfReach(t *testing.T) {
	s3 := testbed.StartS3(t)
	for name, r := range refusals(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vol := newVolume(t)
			db := vol.db(t)
			testbed.MustRun(t, nil, 10*time.Second, testbed.Guestbook(t), "worker", "--db", db, "--count", "1", "--every", "0")
			c := testbed.StartContainer(t, append(s3.Settings(s3.URL(), db), r.change...), worker(t, db, "--every", "50ms")...)
			c.WaitAcked(1, 5*time.Second) // the app does not wait for the bucket
			s := c.WaitHealth(30*time.Second, func(s healthz.Status) error {
				for _, want := range r.want {
					if s.Healthy || !strings.Contains(text(s.HealthError), want) {
						return fmt.Errorf("health_error is %q, want %q", text(s.HealthError), want)
					}
				}
				return nil
			})
			if s.LastSyncedAt != nil {
				t.Errorf("last_synced_at is %v, but nothing was ever uploaded", s.LastSyncedAt)
			}
			if code, _ := c.Get("GET", "/healthz"); code != 503 {
				t.Errorf("/healthz answers %d", code)
			}
			if code, _ := c.Get("GET", "/readyz"); code != 200 {
				t.Errorf("/readyz answers %d, but the app runs", code)
			}
			began := time.Now()
			c.Signal(syscall.SIGTERM)
			if code := c.Wait(12 * time.Second); code != 70 {
				t.Errorf("exit %d, want 70: the last upload can't have worked", code)
			}
			if took := time.Since(began); took > 9500*time.Millisecond {
				t.Errorf("the stop took %s", took)
			}
			noSecret(t, c.Stderr.String(), text(s.HealthError))
		})
	}
}

func TestKeyRevokedWhileRunning(t *testing.T) {
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
	// Nothing is written: only the check of the idle database can tell.
	s := c.WaitHealth(45*time.Second, func(s healthz.Status) error {
		if s.Healthy || !strings.Contains(text(s.HealthError), "refused the access key") {
			return fmt.Errorf("health_error is %q", text(s.HealthError))
		}
		return nil
	})
	t.Logf("told after %s: %s", time.Since(began).Round(time.Second), text(s.HealthError))
	noSecret(t, c.Stderr.String(), text(s.HealthError))
}

func TestBucketGoesAwayUnderLoadAndComesBack(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(proxy.URL(), db), worker(t, db, "--every", "5ms")...)
	c.WaitAcked(100, 20*time.Second)
	c.WaitHealth(10*time.Second, healthy)

	proxy.Cut()
	down := c.WaitHealth(30*time.Second, func(s healthz.Status) error {
		if s.Healthy {
			return errors.New("still healthy")
		}
		return nil
	})
	if !strings.Contains(text(down.HealthError), "refused") {
		t.Errorf("health_error is %q, want the refused connection", text(down.HealthError))
	}
	c.WaitAcked(len(c.Acked())+200, 20*time.Second) // the app goes on meanwhile
	still, err := c.Health()
	if err != nil {
		t.Fatal(err)
	}
	if still.Healthy || *still.LastSyncedAt != *down.LastSyncedAt {
		t.Errorf("last_synced_at moved from %v to %v while the bucket was away", down.LastSyncedAt, still.LastSyncedAt)
	}

	proxy.Mend()
	began := time.Now()
	c.WaitHealth(15*time.Second, func(s healthz.Status) error {
		if err := healthy(s); err != nil {
			return err
		}
		if !time.Time(*s.LastSyncedAt).After(began) {
			return errors.New("healthy, but nothing uploaded since")
		}
		return nil
	})
	t.Logf("healthy again after %s", time.Since(began).Round(time.Millisecond))
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
}

func TestKillKeepsThePromiseOfLastSyncedAt(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	for round := range 3 {
		db := vol.db(t)
		c := testbed.StartContainer(t, append(s3.Settings(s3.URL(), db), shortTTL), worker(t, db, "--every", "1ms")...)
		c.WaitAcked(300, 20*time.Second)
		some := time.Now()
		s := c.WaitHealth(10*time.Second, func(s healthz.Status) error {
			if s.LastSyncedAt == nil || time.Time(*s.LastSyncedAt).Before(some) {
				return errors.New("nothing promised yet")
			}
			return nil
		})
		c.Kill()
		promised := time.Time(*s.LastSyncedAt)
		live := testbed.Entries(t, db) // what the app had committed
		vol.lose(t)

		restored := filepath.Join(t.TempDir(), "restored.db")
		s3.OfficialRestore(restored)
		have := testbed.Entries(t, restored)
		var before int
		for _, e := range live {
			// An entry's time is taken before its commit: only those whose
			// successor was written before the promise surely returned before it.
			if i := slices.IndexFunc(live, func(n testbed.Entry) bool { return n.ID == e.ID+1 }); i >= 0 && live[i].At.Before(promised) {
				before++
				if !slices.ContainsFunc(have, func(h testbed.Entry) bool { return h.ID == e.ID }) {
					t.Fatalf("round %d: entry %d of %s is lost, but last_synced_at promised %s", round, e.ID, e.At, promised)
				}
			}
		}
		if before == 0 {
			t.Fatalf("round %d: the promise %s was about nothing", round, promised)
		}
		t.Logf("round %d: %d of %d commits promised, %d in the bucket", round, before, len(live), len(have))
	}
}

func TestAppsExitCodeAndLastUploadOfAShortLife(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--count", "3", "--every", "0", "--exit", "7")...)
	if code := c.Wait(15 * time.Second); code != 7 {
		t.Errorf("exit %d, want the app's 7", code)
	}
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
}

func TestRegionIsTakenFromTheServersAnswer(t *testing.T) {
	s3, vol := testbed.StartS3In(t, "eu-test-7"), newVolume(t)
	db := vol.db(t)
	// The app's own AWS settings must neither break nor redirect us.
	settings := append(s3.Settings(s3.URL(), db), "AWS_CA_BUNDLE=/no/such/file", "AWS_REGION=ap-wrong-1",
		"AWS_ENDPOINT_URL=http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3=http://127.0.0.1:9", "AWS_PROFILE=no-such-profile",
		"AWS_ACCESS_KEY_ID=APPSOWN", "AWS_SECRET_ACCESS_KEY=apps-own")
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "20ms")...)
	c.WaitAcked(3, 10*time.Second)
	c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil {
			return errors.New("nothing uploaded yet")
		}
		return healthy(s)
	})
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
}

func TestHealthDuringALongRestore(t *testing.T) {
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
		t.Errorf("restore is told as %+v, healthy %v", s.Restore, s.Healthy)
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
		t.Errorf("a finished restore is told as %+v", done.Restore)
	}
	c.WaitAcked(1, 5*time.Second)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	wantAll(t, testbed.Entries(t, db), append(acked, c.Acked()...))
}

func TestStopDuringARestoreLeavesNothing(t *testing.T) {
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

func TestHealthPages(t *testing.T) {
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
	// With port 0, which has told nobody here what it took, by the socket.
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
