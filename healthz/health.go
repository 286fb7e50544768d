package healthz

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Config is what Health needs to know from the start.
type Config struct {
	Enabled bool          // backups are configured
	MaxLag  time.Duration // commits pending for longer make it unhealthy
	Version string
}

// Health is the memory of one container. It is safe for concurrent use; none
// of its methods blocks on anything but its own short lock.
type Health struct {
	cfg    Config
	now    func() time.Time
	meters meters

	mu      sync.Mutex
	s       Status
	ready   bool
	problem string // the newest failure, until a success
	failure string // why the phase is Failed
	follows bool   // another instance replicates
	lease   func() Lease
	drill   string // why the replica could not be restored when that was last tried
	drilled time.Duration
}

// New returns the Health of a container that is starting.
func New(cfg Config) *Health {
	return &Health{
		cfg:    cfg,
		now:    time.Now,
		lease:  func() Lease { return Lease{State: "off"} },
		meters: newMeters(),
		s: Status{
			Phase:     Starting,
			Enabled:   cfg.Enabled,
			Restore:   Restore{State: RestoreNone},
			Processes: []Process{},
			Version:   cfg.Version,
		},
	}
}

// Database records which database is kept, and the address of its replica, for people.
func (h *Health) Database(path, replica string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.DBPath, h.s.Replica = path, replica
}

// Enter moves to a phase. It refuses a step that the life of a container does
// not have. Entering the phase that it is in changes nothing.
func (h *Health) Enter(p Phase) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s.Phase == p {
		return nil
	}
	if !slices.Contains(next[h.s.Phase], p) {
		return fmt.Errorf("healthz: phase %s can't follow %s", p, h.s.Phase)
	}
	h.s.Phase = p
	if p == Stopping || p == Failed {
		h.ready = false
	}
	return nil
}

// Fail enters Failed, for the reason that sentence gives.
func (h *Health) Fail(sentence string) error {
	h.mu.Lock()
	h.failure = sentence
	h.mu.Unlock()
	return h.Enter(Failed)
}

// Ready sets what /readyz reports: whether the app has been started and is not stopping.
func (h *Health) Ready(ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = ready
}

// Synced records an upload that the replica acknowledged: everything committed
// before captured is there, up to transaction txid. It clears the problem.
func (h *Health) Synced(captured time.Time, txid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s.LastSyncedAt == nil || captured.After(time.Time(*h.s.LastSyncedAt)) {
		h.s.LastSyncedAt = stamp(captured)
	}
	h.s.ReplicaTXID = orNull(txid)
	h.problem = ""
	if h.s.PendingSince != nil {
		h.meters.lag.Observe(h.now().Sub(time.Time(*h.s.PendingSince)).Seconds())
	}
}

// Checked records that the replica answered a request well at the given time.
// It does not clear a problem: that a list worked says nothing of an upload.
func (h *Health) Checked(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s.LastCheckedAt == nil || at.After(time.Time(*h.s.LastCheckedAt)) {
		h.s.LastCheckedAt = stamp(at)
	}
}

// Problem records why the newest attempt failed, or with "" that it did not.
func (h *Health) Problem(sentence string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem = sentence
}

// Captured records the newest transaction read from the WAL.
func (h *Health) Captured(txid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.TXID = orNull(txid)
}

// Pending records since when there are commits that the replica lacks; the zero
// time says that there are none.
func (h *Health) Pending(since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.PendingSince = nil
	if !since.IsZero() {
		h.s.PendingSince = stamp(since)
	}
}

// Restoring records how far a restore is.
func (h *Health) Restoring(r Restore) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.Restore = r
}

// Following records that another instance replicates this database, or that it no
// longer does.
func (h *Health) Following(follows bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.follows = follows
}

// Lease records how the lease of the replica stands, until it is called again.
func (h *Health) Lease(is Lease) {
	h.LeaseBy(func() Lease { return is })
}

// LeaseBy records who knows how the lease stands. ask is called for each answer: a
// lease also ends by time alone, and maybe while this process stood still.
func (h *Health) LeaseBy(ask func() Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lease = ask
}

// Verified records the outcome of a drill, and how long it took. wrong is a sentence
// that says what was wrong with the replica, or "" when it was restored and passed the
// checks.
func (h *Health) Verified(at time.Time, took time.Duration, wrong string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drill, h.drilled = wrong, took
	if wrong == "" {
		h.s.LastVerifiedAt = stamp(at)
	}
}

// Process adds a process of the app, or takes it away again when gone is true.
func (h *Health) Process(p Process, gone bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.Processes = slices.DeleteFunc(slices.Clone(h.s.Processes), func(q Process) bool { return q.PID == p.PID })
	if !gone {
		h.s.Processes = append(h.s.Processes, p)
	}
}

// Status returns what /healthz would answer now.
func (h *Health) Status() Status {
	h.mu.Lock()
	ask := h.lease
	h.mu.Unlock()
	lease := ask()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.s
	s.Lease = lease
	s.Healthy, s.HealthError = true, nil
	if why := h.unhealthy(h.now()); why != "" {
		s.Healthy, s.HealthError = false, &why
	}
	return s
}

// unhealthy returns why the backup does not work now, or "".
func (h *Health) unhealthy(now time.Time) string {
	switch {
	case h.s.Phase == Failed && h.failure != "":
		return h.failure
	case h.s.Phase == Failed:
		return "failed"
	case !h.s.Enabled:
		return ""
	case h.problem != "":
		return h.problem
	case h.follows:
		return ""
	case h.s.Phase == Waiting:
		return "waiting for another instance to leave this database"
	case h.s.Phase == Restoring:
		return "restoring the database; the app starts when it is done"
	case h.s.PendingSince != nil && now.Sub(time.Time(*h.s.PendingSince)) > h.cfg.MaxLag:
		since := time.Time(*h.s.PendingSince)
		return fmt.Sprintf("commits since %s are not in the replica yet: they have waited for %s, longer than --max-lag %s",
			since.UTC().Format(time.RFC3339), now.Sub(since).Round(time.Second), h.cfg.MaxLag)
	case h.drill != "":
		return h.drill
	case h.s.LastCheckedAt == nil:
		return "the replica has not answered yet"
	}
	return ""
}

func stamp(t time.Time) *Time {
	v := Time(t.UTC().Truncate(time.Microsecond))
	return &v
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
