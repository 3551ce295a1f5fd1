package ngsi

import (
	"embed"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

//go:embed contexts
var contexts embed.FS

// Contexts are the official @context files of all Subjects, each under its
// subject's name and .jsonld, with a README.md that names their licence.
func Contexts() fs.FS {
	files, err := fs.Sub(contexts, "contexts")
	if err != nil {
		return contexts // cannot be: contexts is a valid path
	}
	return files
}

// Subjects lists those of the data models, in alphabetical order.
func Subjects() []string {
	seen := map[string]bool{}
	for _, m := range models {
		seen[m.subject] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// ContextsAt is Config.Contexts for the files of Contexts at a URL: base, a
// slash, and their names. An empty base is the official place.
func ContextsAt(base string) map[string]string {
	urls := map[string]string{}
	if base == "" {
		return urls
	}
	for _, s := range Subjects() {
		urls[s] = strings.TrimRight(base, "/") + "/" + s + ".jsonld"
	}
	return urls
}
