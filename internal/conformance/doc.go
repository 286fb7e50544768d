// Package conformance examines inits: named checks of what a container's PID 1
// must do, written from behaviour alone, so that tini, dumb-init and catatonit can
// be examined by them too. It has only tests; make conformance runs them all.
package conformance
