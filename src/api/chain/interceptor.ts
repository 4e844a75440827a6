import type { Method } from './describe.ts';
import type { Exchange } from './exchange.ts';

/** The rest of the chain. A value when nothing had to be waited for: the fast path makes no promise. */
export type Next = (exchange: Exchange) => unknown;

/** Composed once per method at start, so that what depends on the method alone is worked out there. */
export type Interceptor = (method: Method, next: Next) => Next;

export function compose(interceptors: readonly Interceptor[], method: Method, last: Next): Next {
  return interceptors.reduceRight((next, interceptor) => interceptor(method, next), last);
}

export function isPromise(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function';
}
