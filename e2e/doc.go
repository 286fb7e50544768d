// Package e2e tests the built binary, as a process and as PID 1, against real parts:
// an S3 server, proxies that break connections and requests, the sample app, the
// official litestream command. Each test is a story that a user could tell.
//
// Most of a test is waiting, so all tests run beside each other: each has a server,
// ports, volumes and namespaces of its own. Go starts those of the first file first:
// there is the one that takes longest. The package has only tests.
package e2e
