// Package e2e tests the built binary, as a process and as PID 1, against real parts:
// an S3 server, proxies that break connections and requests, the sample app, the
// official litestream command. Each test is a story that a user could tell.
//
// Most of a test is waiting, so the tests run beside each other; see parallel. The
// package has only tests.
package e2e
