package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A configuration that a document shows is one that the gateway takes.
func TestDocsConfigurations(t *testing.T) {
	secrets := t.TempDir()
	if err := os.WriteFile(filepath.Join(secrets, "secrets_token"), []byte("what-the-broker-gave\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", secrets) // where the unit has /etc/gateway/secrets/token
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			c, err := readConfig(filepath.Base(file), m[1])
			if err == nil {
				err = c.whole()
			}
			if err != nil {
				t.Errorf("%s:\n%s%v", file, m[1], err)
			}
		}
	}
}
