// What components are made of: preact, its hooks, and tagged templates in place of JSX.

import { Component, Fragment, createContext, h, render } from "preact";
import htm from "htm";

export { createContext, Fragment, h, render };
export { useCallback, useContext, useEffect, useErrorBoundary, useId, useLayoutEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";

export const html = htm.bind(h);

/** A component that is drawn anew only when one of its properties is another one. */
export function memo(draw) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const names = Object.keys(next);
      return names.length !== Object.keys(this.props).length || names.some((name) => next[name] !== this.props[name]);
    }

    render(props) {
      return h(draw, props);
    }
  };
}

/** Class names, of which some may be left out. */
export function classes(...names) {
  return names.filter(Boolean).join(" ");
}
