package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// goFiles lists the Go files of the repository by their paths below its root. It leaves
// out those of which only the tests' tools are built.
func goFiles(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go")
	cmd.Dir = testbed.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	files = slices.DeleteFunc(files, func(f string) bool {
		_, err := os.Stat(filepath.Join(testbed.Root(), f))
		return err != nil || strings.HasPrefix(f, "testdata/tools/")
	})
	if len(files) < 100 {
		t.Fatalf("only %d Go files", len(files))
	}
	return files
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testbed.Root(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rooms are the folders that hold a package, without the root and the programs of
// testdata.
func rooms(t *testing.T) []string {
	var dirs []string
	for _, f := range goFiles(t) {
		if dir := path.Dir(f); dir != "." && !strings.HasPrefix(dir, "testdata/") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// CONTRIBUTING's map has each room and each file of the root, and nothing else.
func TestMap(t *testing.T) {
	_, text, found := strings.Cut(read(t, "CONTRIBUTING.md"), "## The house\n")
	if !found {
		t.Fatal("CONTRIBUTING.md has no map")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var named []string
	for _, line := range regexp.MustCompile(`(?m)^    (\S+)  +\S`).FindAllStringSubmatch(text, -1) {
		named = append(named, strings.TrimSuffix(line[1], "/"))
	}
	want := rooms(t)
	for _, f := range goFiles(t) {
		if path.Dir(f) == "." && !strings.HasSuffix(f, "_test.go") {
			want = append(want, f)
		}
	}
	for _, room := range want {
		if !slices.Contains(named, room) {
			t.Errorf("the map misses %s", room)
		}
	}
	for _, name := range named {
		if _, err := os.Stat(filepath.Join(testbed.Root(), name)); err != nil {
			t.Errorf("the map has %s, which does not exist", name)
		}
	}
}

// Each room has a rule that says what it may import.
func TestEachRoomHasAnImportRule(t *testing.T) {
	_, rules, found := strings.Cut(read(t, ".golangci.yml"), "depguard:\n")
	if !found {
		t.Fatal(".golangci.yml has no depguard")
	}
	rules, _, _ = strings.Cut(rules, "forbidigo:\n")
	var ruled []string
	for _, m := range regexp.MustCompile(`"\*\*/([a-z0-9/-]+)/\*(?:\*)?(?:\.go)?"`).FindAllStringSubmatch(rules, -1) {
		ruled = append(ruled, m[1])
	}
	for _, room := range rooms(t) {
		if !slices.Contains(ruled, room) {
			t.Errorf("no import rule is for %s alone", room)
		}
	}
}

// declared returns the names that the Go files declare: tests by name, and others as
// package.Name, with fields and methods as package.Type.Name and package.Name.
func declared(t *testing.T) map[string]bool {
	names := make(map[string]bool)
	for _, f := range goFiles(t) {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(testbed.Root(), f), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		pkg := strings.TrimSuffix(file.Name.Name, "_test")
		add := func(owner, name string) {
			names[name], names[pkg+"."+name] = true, true
			if owner != "" {
				names[owner+"."+name], names[pkg+"."+owner+"."+name] = true, true
			}
		}
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				add(receiver(d), d.Name.Name)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.ValueSpec:
						for _, n := range s.Names {
							add("", n.Name)
						}
					case *ast.TypeSpec:
						add("", s.Name.Name)
						ast.Inspect(s.Type, func(n ast.Node) bool {
							if field, ok := n.(*ast.Field); ok {
								for _, n := range field.Names {
									add(s.Name.Name, n.Name)
								}
							}
							return true
						})
					}
				}
			}
		}
	}
	return names
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// Each test, symbol and file that the docs name exists.
func TestDocsNameWhatExists(t *testing.T) {
	names := declared(t)
	var pkgs []string
	for _, room := range rooms(t) {
		pkgs = append(pkgs, path.Base(room))
	}
	docs, err := filepath.Glob(filepath.Join(testbed.Root(), "docs", "*.md"))
	if err != nil || len(docs) < 5 {
		t.Fatal(docs, err)
	}
	checked := 0
	for _, doc := range docs {
		text := read(t, "docs/"+filepath.Base(doc))
		for _, test := range regexp.MustCompile(`\b(Test|Fuzz|Benchmark)[A-Z]\w+`).FindAllString(text, -1) {
			checked++
			if !names[test] {
				t.Errorf("%s names %s, which does not exist", filepath.Base(doc), test)
			}
		}
		for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
			word := strings.TrimPrefix(m[1], "./")
			first, rest, dotted := strings.Cut(word, ".")
			switch {
			case regexp.MustCompile(`^[a-z0-9_/]+\.(go|c|sh|md)$`).MatchString(word):
				checked++
				if _, err := os.Stat(filepath.Join(testbed.Root(), word)); err != nil && !strings.HasPrefix(word, "sqlite") {
					t.Errorf("%s names the file %s, which does not exist", filepath.Base(doc), word)
				}
			case dotted && slices.Contains(pkgs, first) && regexp.MustCompile(`^[A-Za-z_.]+$`).MatchString(rest):
				checked++
				if !names[word] {
					t.Errorf("%s names %s, which does not exist", filepath.Base(doc), word)
				}
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d names were found", checked)
	}
}

// The released binary links what it uses: of Litestream the library, and no server,
// proxy or helper of the tests.
func TestLinkedPackages(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Dir = testbed.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{"": true, "/internal": true, "/file": true}
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
