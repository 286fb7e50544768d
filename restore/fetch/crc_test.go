package fetch

import (
	"hash/crc64"
	"math/rand/v2"
	"testing"
)

// The fast checksum and the joined one are those of hash/crc64, for every length
// around the sizes where the way of computing changes.
func TestCRC(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // not for secrets
	data := make([]byte, 8300)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	lengths := []int{4095, 4096, 4097, 4103, 4104, 4127, 4128, 4129, 4500, 5000, 8191, 8192, 8193, 8300}
	for n := range 600 {
		lengths = append(lengths, n)
	}
	for _, n := range lengths {
		seed := random.Uint64()
		if got, want := updateCRC(seed, data[:n]), crc64.Update(seed, isoTable, data[:n]); got != want {
			t.Fatalf("%d bytes: %016x, want %016x", n, got, want)
		}
	}
	whole := crc64.Checksum(data, isoTable)
	for _, at := range []int{0, 1, 7, 100, 2500, 4096, 4999, 8300} {
		joined := joinCRC(updateCRC(0, data[:at]), updateCRC(0, data[at:]), int64(len(data)-at))
		if joined != whole {
			t.Errorf("joined at %d: %016x, want %016x", at, joined, whole)
		}
	}
}

func BenchmarkCRC(b *testing.B) {
	page := make([]byte, 4096)
	for name, update := range map[string]func(uint64, []byte) uint64{
		"ours": updateCRC,
		"hash": func(crc uint64, p []byte) uint64 { return crc64.Update(crc, isoTable, p) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(page)))
			for b.Loop() {
				update(1, page)
			}
		})
	}
}
