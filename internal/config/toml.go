package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"
)

// parseTOML returns the document as a tree of map[string]any, []any,
// []map[string]any, string, int64, float64, bool and time.Time; or, for a
// syntax error, its byte offset and text.
func parseTOML(src string) (root map[string]any, offset int, text string) {
	defer func() {
		// The library panics where its lexer and its parser disagree. For the
		// user that is a syntax error like any other.
		if r := recover(); r != nil {
			root, offset, text = nil, 0, "the TOML library cannot read this file: "+oneLine(fmt.Sprint(r))
		}
	}()
	_, err := toml.Decode(src, &root)
	if err == nil {
		if root == nil {
			root = map[string]any{}
		}
		return root, 0, ""
	}
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return nil, 0, oneLine(err.Error())
	}
	return nil, pe.Position.Start, oneLine(pe.Message)
}

// unmarshaler is what a type implements that reads several kinds of value.
type unmarshaler = toml.Unmarshaler

// unquoteKey returns the key that raw, one part of a dotted key, stands for.
func unquoteKey(raw string) string {
	if raw[0] != '"' && raw[0] != '\'' {
		return raw
	}
	if raw[0] == '\'' || !strings.Contains(raw, `\`) {
		return raw[1 : len(raw)-1]
	}
	root, _, text := parseTOML("k = " + raw)
	if s, ok := root["k"].(string); ok && text == "" {
		return s
	}
	return raw
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
