package check

// #include "windows.h"
import "C"

import (
	"net/url"
	"runtime/cgo"
	"strconv"
	"sync"
)

// register makes SQLite's library know windows.c. It costs nothing but the first
// time, and there it can fail for want of memory alone: then SQLite reads page by
// page, as it does by itself.
var register = sync.OnceValue(func() bool { return C.slasha_windows_register() == 0 })

// through returns the parameters of a URI that opens a file through windows.c, with
// rests, until done is called.
func through(rest func()) (uri url.Values, done func()) {
	uri, done = url.Values{}, func() {}
	if !register() {
		return uri, done
	}
	uri.Set("vfs", C.SLASHA_WINDOWS)
	if rest != nil {
		h := cgo.NewHandle(rest)
		uri.Set("rest", strconv.FormatUint(uint64(h), 10))
		done = h.Delete
	}
	return uri, done
}

//export slasha_rest
func slasha_rest(handle C.uint64_t) { //nolint:revive // C's name for it
	cgo.Handle(handle).Value().(func())() //nolint:forcetypeassert // through made it
}
