package llm

import "strings"

// field is what a value means, whatever path it stands at.
type field uint8

const (
	noField field = iota

	// Of requests.
	fieldModel
	fieldStream
	fieldIncludeUsage

	// Of responses and events.
	fieldAnsweredModel
	fieldInput
	fieldOutput
	fieldTotal
	fieldCacheRead
	fieldCacheWrite
	fieldReasoning
	fieldFinish
	fieldStatus // how it ended, where there is no reason
	fieldType
	fieldError
	fieldErrorType
	fieldErrorCode
	fieldDone
	fieldContent // text of the model, if it is not empty
	fieldPart    // a part of what the model answers, if it is an object or an array
)

// tree is the paths that a scanner looks for. Node 0 is the root; nowhere is
// what all other paths lead to.
type tree struct {
	nodes []node
}

const nowhere = 1

type node struct {
	field field
	inner bool // there are keys to look for
	elem  uint8
	keys  [maxKey + 1][]edge // by length
}

type edge struct {
	key string
	to  uint8
}

const maxKey = 27

// child returns the node of a key below a node.
func (t *tree) child(at uint8, key []byte) uint8 {
	if len(key) <= maxKey {
		for _, e := range t.nodes[at].keys[len(key)] {
			if string(key) == e.key {
				return e.to
			}
		}
	}
	return nowhere
}

// newTree makes the tree of paths such as "choices[].delta.content".
func newTree(paths map[string]field) *tree {
	t := &tree{nodes: []node{{elem: nowhere}, {elem: nowhere}}}
	add := func() uint8 {
		if len(t.nodes) == 256 {
			panic("llm: too many paths for a tree")
		}
		t.nodes = append(t.nodes, node{elem: nowhere})
		return uint8(len(t.nodes) - 1)
	}
	for path, f := range paths {
		at := uint8(0)
		for _, step := range strings.Split(path, ".") {
			key, list := strings.CutSuffix(step, "[]")
			next := t.child(at, []byte(key))
			if next == nowhere {
				next = add()
				t.nodes[at].inner = true
				t.nodes[at].keys[len(key)] = append(t.nodes[at].keys[len(key)], edge{key, next})
			}
			at = next
			if list {
				if t.nodes[at].elem == nowhere {
					elem := add()
					t.nodes[at].elem = elem
				}
				at = t.nodes[at].elem
			}
		}
		t.nodes[at].field = f
	}
	return t
}

var requestTree = newTree(map[string]field{
	"model": fieldModel, "stream": fieldStream, "stream_options.include_usage": fieldIncludeUsage,
})

// responseTree has the paths of all dialects: they do not contradict each other.
var responseTree = newTree(func() map[string]field {
	m := map[string]field{
		"type": fieldType, "done": fieldDone,
		"error": fieldError, "error.type": fieldErrorType, "error.code": fieldErrorCode,
		"response.error": fieldError, "response.error.code": fieldErrorCode, "code": fieldErrorCode,

		// OpenAI.
		"choices[].finish_reason": fieldFinish, "choices[].text": fieldContent,
		"choices[].delta.content": fieldContent, "choices[].delta.refusal": fieldContent,
		"choices[].delta.reasoning": fieldContent, "choices[].delta.reasoning_content": fieldContent,
		"choices[].delta.tool_calls": fieldPart, "choices[].delta.function_call": fieldPart, "choices[].delta.audio": fieldPart,
		"status": fieldStatus, "incomplete_details.reason": fieldFinish,
		"response.status": fieldStatus, "response.incomplete_details.reason": fieldFinish,
		// Anthropic.
		"stop_reason": fieldFinish, "delta.stop_reason": fieldFinish,
		// Ollama.
		"done_reason": fieldFinish, "prompt_eval_count": fieldInput, "eval_count": fieldOutput,
		"message.content": fieldContent, "message.thinking": fieldContent, "message.tool_calls": fieldPart,
		"response": fieldContent, "thinking": fieldContent,
	}
	for _, at := range []string{"", "message.", "response."} {
		m[at+"model"] = fieldAnsweredModel
		for key, f := range map[string]field{
			"prompt_tokens": fieldInput, "input_tokens": fieldInput,
			"completion_tokens": fieldOutput, "output_tokens": fieldOutput, "total_tokens": fieldTotal,
			"prompt_tokens_details.cached_tokens": fieldCacheRead, "input_tokens_details.cached_tokens": fieldCacheRead,
			"prompt_tokens_details.cache_write_tokens":   fieldCacheWrite,
			"completion_tokens_details.reasoning_tokens": fieldReasoning, "output_tokens_details.reasoning_tokens": fieldReasoning,
			"cache_read_input_tokens": fieldCacheRead, "cache_creation_input_tokens": fieldCacheWrite,
		} {
			m[at+"usage."+key] = f
		}
	}
	return m
}())
