package levels

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// listed is a replica that counts its lists. Its iterators fail when they are closed.
type listed struct {
	files  Files
	closes map[int]error

	mu    sync.Mutex
	calls map[int]int // by level
	exact int
}

func (l *listed) LTXFiles(_ context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		l.calls = make(map[int]int)
	}
	l.calls[level]++
	if useMetadata {
		l.exact++
	}
	if seek != 0 {
		return nil, errors.New("a part of the list")
	}
	return list{ltx.NewFileInfoSliceIterator(l.files[level]), l.closes[level]}, nil
}

type list struct {
	ltx.FileIterator
	err error
}

func (l list) Close() error { return l.err }

func info(level int, minTXID, maxTXID ltx.TXID) *ltx.FileInfo {
	return &ltx.FileInfo{Level: level, MinTXID: minTXID, MaxTXID: maxTXID}
}

// Each level costs one list, and no file is asked for.
func TestList(t *testing.T) {
	for _, exact := range []bool{false, true} {
		client := &listed{files: Files{0: {info(0, 8, 8), info(0, 9, 9)}, 1: {info(1, 1, 9)}, litestream.SnapshotLevel: {info(9, 1, 7)}}}
		files, err := List(t.Context(), client, exact)
		if err != nil {
			t.Fatal(err)
		}
		for level, want := range client.files {
			if len(files[level]) != len(want) || len(want) > 0 && files[level][0] != want[0] || client.calls[level] != 1 {
				t.Errorf("level %d: %v in %d lists, want %v", level, files[level], client.calls[level], want)
			}
		}
		if want := map[bool]int{true: len(files)}[exact]; client.exact != want {
			t.Errorf("%d lists with exact times, want %d", client.exact, want)
		}
	}
}

// A list that turns out at its end not to be ours is none.
func TestListThatFailsAtItsEnd(t *testing.T) {
	lost := errors.New("the lease was lost")
	client := &listed{files: Files{3: {info(3, 1, 5)}}, closes: map[int]error{3: lost}}
	files, err := List(t.Context(), client, false)
	if !errors.Is(err, lost) || Newest(files[:]...).MaxTXID != 0 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestNewest(t *testing.T) {
	for name, c := range map[string]struct {
		levels [][]*ltx.FileInfo
		want   ltx.FileInfo
	}{
		"no level":               {nil, ltx.FileInfo{}},
		"no file":                {[][]*ltx.FileInfo{nil, {}}, ltx.FileInfo{}},
		"the last of a level":    {[][]*ltx.FileInfo{{info(0, 1, 1), info(0, 2, 2)}}, *info(0, 2, 2)},
		"another level's":        {[][]*ltx.FileInfo{{info(0, 1, 1)}, nil, {info(2, 1, 4), info(2, 2, 3)}}, *info(2, 1, 4)},
		"the same on two levels": {[][]*ltx.FileInfo{{info(0, 5, 5)}, {info(1, 1, 5)}}, *info(0, 5, 5)},
	} {
		if got := Newest(c.levels...); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
