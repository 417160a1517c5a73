package control

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// problemType is the media type of a Problem.
const problemType = "application/problem+json"

// Problem is the answer to a request that was not done (RFC 9457).
type Problem struct {
	Title  string `json:"title"` // of the status
	Status int    `json:"status"`
	Code   string `json:"code"`   // the kind of problem, lower_snake
	Detail string `json:"detail"` // what was wrong with this one
	Mend   string `json:"mend"`   // what to do about it

	cause error
}

// Error implements error. What mends it is in the text.
func (p *Problem) Error() string {
	if p.Mend == "" || strings.Contains(p.Detail, p.Mend) {
		return p.Detail
	}
	return p.Detail + "; " + p.Mend
}

// Unwrap returns the cause, on the side of the appliance.
func (p *Problem) Unwrap() error { return p.cause }

func problemf(status int, code, mend, format string, args ...any) *Problem {
	err := fmt.Errorf(format, args...)
	return &Problem{Title: http.StatusText(status), Status: status, Code: code, Detail: err.Error(), Mend: mend, cause: err}
}

// Wrong is err, as the fault of who asked: a value that cannot be.
func Wrong(err error) error { return blame(http.StatusUnprocessableEntity, "wrong_value", err) }

// Unknown is err: what the request names is not there.
func Unknown(err error) error { return blame(http.StatusNotFound, "no_such_thing", err) }

// Refused is err: the appliance will not, as it is now.
func Refused(err error) error { return blame(http.StatusConflict, "refused", err) }

func blame(status int, code string, err error) error {
	if err == nil {
		return nil
	}
	return &Problem{Title: http.StatusText(status), Status: status, Code: code, Detail: err.Error(), Mend: mendIn(err.Error()), cause: err}
}

// problemOf is an error as a client gets it.
func problemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return blame(http.StatusInternalServerError, "failed", err).(*Problem)
}

// mendIn returns what an error says behind its cause: "verb object: cause; mend".
func mendIn(text string) string {
	if i := strings.LastIndex(text, "; "); i >= 0 {
		return text[i+2:]
	}
	return "see the log of the appliance"
}
