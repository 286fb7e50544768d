package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/internal/durable"
)

// record is what lies in the replica: who has the lease, and who had it last. It
// is written over and never deleted, so its epoch only grows, and no provider that
// ignores the condition of a DELETE can take it from a successor.
type record struct {
	Epoch uint64 `json:"epoch"` // one higher with each holder
	Owner string `json:"owner"` // unique to one start of the program
	// Renewal makes each writing of the record another content, and so another
	// tag.
	Renewal    uint64  `json:"renewal"`
	TTLSeconds float64 `json:"ttl_seconds"` // as the holder has it
	Released   bool    `json:"released"`

	// For people. Nothing is decided by the clock that wrote RenewedAt.
	Host      string    `json:"host"`
	RenewedAt time.Time `json:"renewed_at"`
}

// encode never fails: a record has nothing that JSON can't say.
func (r record) encode() []byte {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
}

// decode reads what anybody may have written. Data that is not a record counts as
// another instance's: we wait for it like for one, and then write over it.
func decode(data []byte) record {
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Owner == "" {
		return record{Owner: "unknown"}
	}
	return r
}

const longestTTL = 24 * time.Hour

// ttl is for how long the record must not change before it counts as abandoned.
func (r record) ttl(otherwise time.Duration) time.Duration {
	if d := time.Duration(r.TTLSeconds * float64(time.Second)); d > 0 && d <= longestTTL {
		return d
	}
	return otherwise
}

// holder is how a person would call the one who wrote it. It comes from outside,
// and ends up in logs and on a terminal.
func (r record) holder() string {
	host := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, r.Host)
	if runes := []rune(host); len(runes) > 100 {
		host = string(runes[:100])
	}
	if host == "" {
		host = "an unknown host"
	}
	return fmt.Sprintf("%s, epoch %d", host, r.Epoch)
}

// memory is what lies on the volume, beside the database. Only the holder of the
// volume's lock uses it.
type memory struct {
	// Owners are those whose record may be in the replica: that of the last start,
	// and those of starts since that never learned whether theirs got there.
	Owners []string `json:"owners"`
	// Place is the folder that it lies in. On a copy of the volume that is another
	// one: there, the holder may be alive.
	Place string `json:"place"`
	Epoch uint64 `json:"epoch"` // the highest seen
	// Replica has been seen to obey conditions.
	Replica string `json:"replica,omitempty"`
}

// mostOwners is more starts in a row than have all lost the answer to their first
// write.
const mostOwners = 8

func (m memory) with(owner string) memory {
	m.Owners = append(append([]string(nil), m.Owners...), owner)
	if extra := len(m.Owners) - mostOwners; extra > 0 {
		m.Owners = m.Owners[extra:]
	}
	return m
}

// load reads the memory. If it can't be read, it counts as empty: then we wait for the
// lease.
func load(note durable.Note) (memory, error) {
	b, err := note.Read()
	if errors.Is(err, fs.ErrNotExist) {
		return memory{}, nil
	}
	var m memory
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return memory{}, fmt.Errorf("read the note of the lease: %w", err)
	}
	if m.Place != place(note.Dir()) {
		m.Owners = nil
	}
	return m, nil
}

// place names a folder: it keeps its inode and the time of its birth
// when it is renamed, mounted elsewhere or used by another start, and a copy has others.
func place(dir string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return ""
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return fmt.Sprint(st.Ino)
	}
	return fmt.Sprintf("%d born %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// save writes the memory, and returns when it is on the disk.
func (m memory) save(note durable.Note) error {
	m.Place = place(note.Dir()) // which exists: the volume's lock lies there
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := note.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("note the lease: %w", err)
	}
	return nil
}
