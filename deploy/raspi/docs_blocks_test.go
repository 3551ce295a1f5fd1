package raspi_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// The documents that tell people what to type. Each command in them is run by
// TestDocs (lifecycle); here is what can be said of them without a machine.

const docsDir = "../../docs"

// docNames are the English ones; each has a French one beside it.
var docNames = []string{"first-gateway.md", "admin.md"}

func french(name string) string { return strings.TrimSuffix(name, ".md") + ".fr.md" }

// part is what a document holds between its prose: a fenced block, or something
// that hands do (`<!-- hand: … -->`), which no command can.
type part struct {
	line int    // in the file
	kind string // the fence's language, or "hand"
	text string
}

// languages are what blocks may be in: commands and what they print, a
// configuration, a drop-in of systemd's, and what is none of these.
var languages = []string{"console", "yaml", "ini", "text"}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(docsDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// partsOf reads a document. A fence stands at a line's begin.
func partsOf(t *testing.T, name string) (parts []part) {
	t.Helper()
	var open *part
	for i, line := range strings.Split(readDoc(t, name), "\n") {
		language, fence := strings.CutPrefix(line, "```")
		hand, isHand := strings.CutPrefix(line, "<!-- hand: ")
		switch {
		case fence && open != nil && language == "":
			parts, open = append(parts, *open), nil
		case fence && open == nil && slices.Contains(languages, language):
			open = &part{line: i + 1, kind: language}
		case fence || strings.HasPrefix(strings.TrimSpace(line), "```"):
			t.Fatalf("%s:%d: a block is one of %v, and its fence begins the line", name, i+1, languages)
		case open != nil:
			open.text += line + "\n"
		case isHand:
			parts = append(parts, part{i + 1, "hand", strings.TrimSuffix(hand, " -->")})
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: this block does not end", name, open.line)
	}
	return parts
}

// step is a command and what it prints. … stands for what differs: within a line
// for anything, as a line for any lines or none. The line ^C is a key.
type step struct {
	line    int
	command string
	prints  []string
}

func stepsOf(t *testing.T, name string, p part) (steps []step) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSuffix(p.text, "\n"), "\n") {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			steps = append(steps, step{p.line + 1 + i, command, nil})
		} else if len(steps) > 0 {
			s := &steps[len(steps)-1]
			s.prints = append(s.prints, strings.TrimRight(line, " "))
		} else {
			t.Fatalf("%s:%d: a console block begins with `$ command`", name, p.line)
		}
	}
	return steps
}

// What is run for one language is run for both.
func TestDocsHaveTheSameBlocks(t *testing.T) {
	for _, name := range docNames {
		en, fr := partsOf(t, name), partsOf(t, french(name))
		for i := range max(len(en), len(fr)) {
			switch {
			case i >= len(en):
				t.Fatalf("%s:%d: %s has no such block", french(name), fr[i].line, name)
			case i >= len(fr):
				t.Fatalf("%s:%d: %s has no such block", name, en[i].line, french(name))
			case en[i].kind != fr[i].kind || en[i].kind != "text" && en[i].text != fr[i].text:
				t.Fatalf("%s:%d and %s:%d differ:\n%s\n%s", name, en[i].line, french(name), fr[i].line, en[i].text, fr[i].text)
			}
		}
	}
}

// programs begin the words that are commands where they stand within a sentence.
var programs = []string{"gateway", "sudo", "curl", "systemctl", "journalctl", "ssh", "ssh-keygen", "sh", "apt", "make", "systemd-analyze"}

// A command within a sentence is run, too: it stands in a block, alone or with
// more behind it.
func TestDocsSentencesHaveNoOtherCommands(t *testing.T) {
	var run []string
	for _, name := range docNames {
		for _, p := range partsOf(t, name) {
			if p.kind == "console" {
				for _, s := range stepsOf(t, name, p) {
					run = append(run, s.command)
				}
			}
		}
	}
	span := regexp.MustCompile("`([^`\n]+)`")
	fenced := regexp.MustCompile("(?ms)^```.*?^```$")
	for _, name := range docNames {
		for _, file := range []string{name, french(name)} {
			for _, m := range span.FindAllStringSubmatch(fenced.ReplaceAllString(readDoc(t, file), ""), -1) {
				first, _, more := strings.Cut(m[1], " ")
				if !more || !slices.Contains(programs, first) {
					continue
				}
				if !slices.ContainsFunc(run, func(c string) bool {
					return c == m[1] || strings.HasPrefix(c, m[1]+" ") || strings.HasPrefix(c, "sudo "+m[1]+" ") || c == "sudo "+m[1]
				}) {
					t.Errorf("%s: no block runs `%s`", file, m[1])
				}
			}
		}
	}
}

// anchor is the name that a heading has for links, as GitHub makes it.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

func TestDocsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	for _, name := range docNames {
		for _, file := range []string{name, french(name)} {
			for _, m := range link.FindAllStringSubmatch(readDoc(t, file), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				to, fragment, _ := strings.Cut(m[1], "#")
				if to == "" {
					to = file
				}
				text, err := os.ReadFile(filepath.Join(docsDir, to))
				if err != nil {
					t.Errorf("%s: %s: %v", file, m[1], err)
					continue
				}
				if fragment != "" && !slices.ContainsFunc(heading.FindAllStringSubmatch(string(text), -1), func(h []string) bool { return anchor(h[1]) == fragment }) {
					t.Errorf("%s: %s: there is no such heading", file, m[1])
				}
			}
		}
	}
}
