package main_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// The released binary links what it uses: of Litestream the S3 and the folder
// client, and no server, proxy or helper of the tests.
func TestLinkedPackages(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Dir = testbed.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{"": true, "/internal": true, "/file": true, "/s3": true}
	var seen int
	for _, pkg := range strings.Fields(string(out)) {
		if rest, ok := strings.CutPrefix(pkg, "github.com/benbjohnson/litestream"); ok {
			seen++
			if !allowed[rest] {
				t.Errorf("%s is linked", pkg)
			}
		}
		for _, test := range []string{"versitygw", "toxiproxy", "gofakes3", "testbed", "go-internal/testscript"} {
			if strings.Contains(pkg, test) {
				t.Errorf("%s is linked", pkg)
			}
		}
		if pkg == "testing" {
			t.Error("the testing package is linked")
		}
	}
	if seen != len(allowed) {
		t.Errorf("%d packages of Litestream", seen)
	}
}
