//go:build race

package lease

// raced is true with the race detector, under which a model of one goroutine takes
// ten times as long and shows nothing more.
const raced = true
