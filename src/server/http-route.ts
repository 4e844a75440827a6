import type { IncomingHttpHeaders } from 'node:http';
import { incident } from '../api/chain/report.ts';
import { errorDomain, wireMessage } from '../api/chain/status.ts';
import { BrokerError } from '../domain/errors.ts';
import type { ErrorCode } from '../domain/errors.ts';
import type { Emit } from '../observability/observability.ts';

/** What is served beside the RPCs: JWKS, metadata, the OAuth endpoints, health, metrics, the console. */
export interface HttpRoute {
  /** GET also answers HEAD. */
  method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** Exact, or a prefix that ends in `/*`. */
  path: string;
  /** What it throws is answered as the RPCs' errors are: BrokerError in its own words, all else as an incident. */
  handler: (request: HttpRequest) => HttpResponse | Promise<HttpResponse>;
}

export interface HttpRequest {
  method: string;
  path: string;
  query: URLSearchParams;
  headers: IncomingHttpHeaders;
  /** The whole body, at most `maxMessageBytes`; throws TOO_LARGE. */
  body: () => Promise<Buffer>;
  /** Aborts when the caller goes away and when the broker stops. */
  signal: AbortSignal;
  remoteAddress: string | undefined;
}

export interface HttpResponse {
  status: number;
  headers?: Record<string, string>;
  /** An iterable is sent as it is produced, as fast as the reader takes it. */
  body?: string | Uint8Array | AsyncIterable<string | Uint8Array>;
}

export function json(status: number, value: unknown, headers: Record<string, string> = {}): HttpResponse {
  return { status, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(value) };
}

/** The Connect protocol's table of codes, so that all of the door speaks alike. */
const httpStatus: Readonly<Record<ErrorCode, number>> = {
  invalid_argument: 400,
  failed_precondition: 400,
  unauthenticated: 401,
  permission_denied: 403,
  not_found: 404,
  already_exists: 409,
  resource_exhausted: 429,
  internal: 500,
  unimplemented: 501,
  unavailable: 503,
  deadline_exceeded: 504,
};

export function errorResponse(thrown: unknown, path: string, emit: Emit): HttpResponse {
  const error =
    thrown instanceof BrokerError && thrown.code !== 'internal'
      ? thrown
      : incident(thrown, (number) => emit('http.failed', { path, incident: number, cause: thrown }));
  const headers: Record<string, string> = {};
  if (error.code === 'unauthenticated') headers['www-authenticate'] = 'Bearer';
  if (error.retryAfterMs !== undefined) headers['retry-after'] = String(Math.ceil(error.retryAfterMs / 1_000));
  const status = error.reason === 'TOO_LARGE' ? 413 : httpStatus[error.code];
  return json(
    status,
    { code: error.code, message: wireMessage(error), reason: error.reason, domain: errorDomain },
    headers,
  );
}

/** Said of what has no reason of its own in the contract. */
export function plainError(
  status: number,
  code: string,
  message: string,
  headers?: Record<string, string>,
): HttpResponse {
  return json(status, { code, message }, headers);
}

export interface Readiness {
  ready: boolean;
  /** Part by part; details hold no secret. */
  components: readonly { name: string; ready: boolean; detail: string }[];
}

export interface BuiltInOptions {
  ready: () => Readiness;
  metrics: () => Promise<string>;
  metricsContentType: string;
}

/** For whatever runs the process: is it alive, can it issue, what does it count. */
export function builtInRoutes({ ready, metrics, metricsContentType }: BuiltInOptions): HttpRoute[] {
  return [
    { method: 'GET', path: '/healthz', handler: () => json(200, { live: true }) },
    {
      method: 'GET',
      path: '/readyz',
      handler: () => {
        const { ready: isReady, components } = ready();
        const parts = components.map(({ name, ready: partReady, detail }) => ({ name, ready: partReady, detail }));
        return json(isReady ? 200 : 503, { ready: isReady, components: parts });
      },
    },
    {
      method: 'GET',
      path: '/metrics',
      handler: async () => ({
        status: 200,
        headers: { 'content-type': metricsContentType },
        body: await metrics(),
      }),
    },
  ];
}

export type FindRoute = (method: string, path: string) => HttpRoute | 'method_not_allowed' | undefined;

export function routeTable(routes: readonly HttpRoute[]): FindRoute {
  const exact = new Map<string, HttpRoute[]>();
  const prefixes: HttpRoute[] = [];
  for (const route of routes) {
    if (route.path.endsWith('/*')) prefixes.push(route);
    else exact.set(route.path, [...(exact.get(route.path) ?? []), route]);
  }
  // The longest prefix is the most particular one.
  prefixes.sort((a, b) => b.path.length - a.path.length);
  return (method, path) => {
    const found = exact.get(path) ?? prefixes.filter((route) => path.startsWith(route.path.slice(0, -1)));
    if (found.length === 0) return undefined;
    const wanted = method === 'HEAD' ? 'GET' : method;
    return found.find((route) => route.method === wanted) ?? 'method_not_allowed';
  };
}
