package replica

import (
	"time"

	"github.com/slashacom/slasha-init/replica/storage"
)

// Settings say where a replica lives, with which keys, and how its one writer is kept
// the only one. Package config reads them.
type Settings struct {
	Storage storage.Config // without OnResult and Logger, which Open sets

	Lease    Mode
	TTL      time.Duration // of the lease, from one renewal on
	Patience time.Duration // how long a start waits for another instance to leave
}

// Mode is what to do about the lease in the bucket.
type Mode int

// The modes.
const (
	Auto     Mode = iota // take the lease where the service can do that
	Required             // do not start the app without it
	Off                  // take none: any instance may write
)
