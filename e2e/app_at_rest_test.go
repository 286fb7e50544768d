package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// An idle app costs fewer than 150,000 requests a month, all in: the renewals of its
// lease are the checks of its bucket, and compactions that have nothing to do ask for
// nothing. The first minutes of a container have more, once.
func TestRequestsOfAnIdleDatabase(t *testing.T) {
	t.Parallel()
	const (
		looking = 65 * time.Second
		most    = 150_000 * float64(looking) / float64(30*24*time.Hour) // 3.8
	)
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	breaker := testbed.StartBreaker(t, s3.Addr, 1)
	c := testbed.StartContainer(t, s3.Settings("http://"+breaker.Addr, db), worker(t, db, "--burst", "30", "--every", "10m")...)
	c.WaitHealth(20*time.Second, allSynced)
	began := time.Now()
	var recent []testbed.Asked
	testbed.Eventually(t, 5*time.Minute, func() error {
		now := time.Now()
		asked := breaker.Asked()
		recent = slices.DeleteFunc(asked, func(a testbed.Asked) bool { return now.Sub(a.At) > looking })
		if now.Sub(began) < looking || float64(len(recent)) > most {
			return fmt.Errorf("%d requests in the last %s; want at most %.1f: %v", len(recent), looking, most, recent)
		}
		return nil
	})
	t.Logf("%d requests in %s, %.0f s after the start: %v", len(recent), looking, time.Since(began).Seconds(), recent)
	s, err := c.Health()
	if err != nil || healthy(s) != nil || s.LastCheckedAt == nil || time.Since(time.Time(*s.LastCheckedAt)) > 30*time.Second {
		t.Errorf("last checked %v, %v, %v", s.LastCheckedAt, healthy(s), err)
	}
}
