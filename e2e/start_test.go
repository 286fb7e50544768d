package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Starts: with a database or without, and with a bucket that is there, refuses, or is silent.

// refusals are ways in which a bucket can be out of reach, with what a person
// reads about them.
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
	t.Parallel()
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
	t.Parallel()
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

func TestRegionIsTakenFromTheServersAnswer(t *testing.T) {
	t.Parallel()
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

// With the database there, the start does not wait for the bucket: here one that
// takes connections and never says a word.
func TestNothingWaitsForTheNetwork(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	s3 := testbed.StartS3(t)
	db := newVolume(t).db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), testbed.Guestbook(t), "worker", "--db", db, "--count", "3")
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	c = testbed.StartContainer(t, append(s3.Settings("http://"+silent.Addr().String(), db), "SLASHA_STOP_TIMEOUT=1s"), testbed.Guestbook(t), "worker", "--db", db, "--count", "1")
	c.Wait(20 * time.Second)
	if n := len(c.Acked()); n != 1 {
		t.Errorf("%d commits", n)
	}
	log := c.Stderr.String()
	if started, tried := strings.Index(log, "msg=started"), strings.Index(log, "level=WARN"); started < 0 || (tried >= 0 && tried < started) {
		t.Errorf("the app had to wait:\n%s", log)
	}
}

// A stop signal during a wait for the bucket ends the wait at once.
func TestStopDuringAWait(t *testing.T) {
	t.Parallel()
	db := newVolume(t).db(t)
	refused := testbed.FreeAddr(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		c := testbed.StartContainer(t, []string{
			"SLASHA_DB_PATH=" + db, "SLASHA_BUCKET=none", "SLASHA_ENDPOINT=http://" + refused, "SLASHA_HEALTH_ADDR=127.0.0.1:0",
			"SLASHA_ACCESS_KEY_ID=MADEUPKEY0000000000", "SLASHA_SECRET_ACCESS_KEY=made-up-secret",
		}, "sh", "-c", "echo started")
		c.Signal(sig)
		began := time.Now()
		if code := c.Wait(5 * time.Second); code != 128+int(sig) || c.Stdout.String() != "" {
			t.Errorf("%s: exit %d, %q", sig, code, c.Stdout)
		}
		t.Logf("%s: %s", sig, time.Since(began).Round(time.Millisecond))
	}
	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(db), "*")); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestAppsExitCodeAndLastUploadOfAShortLife(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--count", "3", "--every", "0", "--exit", "7")...)
	if code := c.Wait(15 * time.Second); code != 7 {
		t.Errorf("exit %d, want the app's 7", code)
	}
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
}

// An app may also work without ever making a database.
func TestNoDatabaseAtAll(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), vol.db(t)), "sleep", "60")
	s := c.WaitHealth(10*time.Second, healthy)
	if s.LastSyncedAt != nil || s.TXID != nil {
		t.Errorf("%+v", s)
	}
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(5 * time.Second); code != 143 {
		t.Errorf("exit %d", code)
	}
}

// After a clean stop there is nothing to upload at the next start; what was uploaded last
// is still reported.
func TestARestartWithNothingToUpload(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--count", "5", "--every", "0")...)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	between := time.Now()
	c = testbed.StartContainer(t, settings, "sleep", "60")
	s := c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil {
			return errors.New("it does not say when it was synced")
		}
		return healthy(s)
	})
	if at := time.Time(*s.LastSyncedAt); at.After(time.Now()) || between.Sub(at) > time.Minute {
		t.Errorf("last_synced_at is %s", at)
	}
	if s.TXID == nil || s.ReplicaTXID == nil || *s.TXID != *s.ReplicaTXID {
		t.Errorf("transactions %s and %s", text(s.TXID), text(s.ReplicaTXID))
	}
}

// The command line, as the testscript files in testdata/script describe it.
func TestScripts(t *testing.T) {
	t.Parallel()
	bins := t.TempDir()
	for name, bin := range map[string]string{"slasha-init": testbed.SlashaInit(t), "guestbook": testbed.Guestbook(t)} {
		if err := os.Symlink(bin, filepath.Join(bins, name)); err != nil {
			t.Fatal(err)
		}
	}
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = occupied.Close() }) // the scripts run in parallel, after this function
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join(testbed.Root(), "testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bins+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("OCCUPIED", occupied.Addr().String())
			env.Setenv("SLASHA_HEALTH_ADDR", "127.0.0.1:0")
			return nil
		},
	})
}
