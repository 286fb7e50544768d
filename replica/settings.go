package replica

import (
	"time"

	"github.com/slashacom/slasha-init/replica/storage"
)

// Settings say where a replica lives, with which keys, and how it is kept for one
// writer. Package config reads them.
type Settings struct {
	Storage storage.Config // without OnResult and Logger, which are the container's

	Lease    Mode
	TTL      time.Duration // of the lease
	Patience time.Duration // for how long a start waits for another instance to leave
}

// Mode is what to do about the lease in the bucket.
type Mode int

// The modes.
const (
	Auto     Mode = iota // take the lease where the service can do that
	Required             // start nothing without it
	Off                  // leave it out
)
