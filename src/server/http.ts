import { createContextValues } from '@connectrpc/connect';
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from '@connectrpc/connect-node';
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { constants, createSecureServer } from 'node:http2';
import type { Http2SecureServer, Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Chain } from '../api/chain/chain.ts';
import { BrokerError } from '../domain/errors.ts';
import type { Emit } from '../observability/observability.ts';
import type { RpcHandler } from './connect.ts';
import { certificateKey, connectHandlers, cutKey } from './connect.ts';
import { corsHeaders, isHostAccepted, preflightHeaders, securityHeaders } from './http-headers.ts';
import type { HttpResponse, HttpRoute } from './http-route.ts';
import { errorResponse, plainError, routeTable } from './http-route.ts';
import type { Sockets } from './listener.ts';
import { listenOn, trackSockets } from './listener.ts';
import type { DoorLimits, DoorListen } from './options.ts';
import { checkPlaintext } from './options.ts';
import type { TlsSource } from './tls.ts';
import { certificateThumbprint, clientCertificates, contextOf, openTls } from './tls.ts';

export type { HttpRoute } from './http-route.ts';

export interface HttpDoorOptions {
  listen: DoorListen;
  chain: Chain;
  limits: DoorLimits;
  /** Built-in ones included. */
  routes: readonly HttpRoute[];
  /** Origins whose scripts may call, e.g. `https://console.example.com`. */
  corsOrigins: readonly string[];
  /** Host names that the door answers to; empty for any. */
  hosts: readonly string[];
  tlsReloadMs: number;
  emit: Emit;
}

export interface HttpDoor {
  open(): Promise<number>;
  reloadTls(): Promise<void>;
  close(waitMs: number): Promise<void>;
}

type Request = IncomingMessage | Http2ServerRequest;
type Response = ServerResponse | Http2ServerResponse;

const maxUrl = 16_384;

export function createHttpDoor(options: HttpDoorOptions): HttpDoor {
  const { listen, chain, limits, emit } = options;
  checkPlaintext('HTTP', listen);
  const rpcs = connectHandlers(chain, limits.maxMessageBytes);
  const find = routeTable(options.routes);
  const origins = new Set(options.corsOrigins);
  const hosts = new Set(options.hosts.map((host) => host.toLowerCase()));
  const fixedHeaders = Object.entries(securityHeaders(listen.tls !== undefined));
  const closing = new AbortController();

  function onRequest(request: Request, response: Response): void {
    // A peer that goes away is not an error of ours; whoever writes learns of it from the stream.
    response.on('error', () => undefined);
    for (const [name, value] of fixedHeaders) response.setHeader(name, value);
    for (const [name, value] of Object.entries(corsHeaders(request.headers.origin, origins))) {
      response.setHeader(name, value);
    }
    if ('stream' in request) boundBody(request, limits.requestTimeoutMs);
    else if (chain.load.stopping) response.setHeader('connection', 'close');

    const url = request.url ?? '';
    const path = url.split('?', 1)[0]!;
    const host = 'authority' in request && request.authority ? request.authority : request.headers.host;
    if (url.length > maxUrl) return respond(request, response, plainError(414, 'out_of_range', 'The URL is too long.'));
    if (!isHostAccepted(host, hosts)) {
      const message = 'The host name in the request is not one that this broker answers to.';
      return respond(request, response, plainError(421, 'invalid_argument', message));
    }
    if (request.method === 'OPTIONS' && request.headers['access-control-request-method'] !== undefined) {
      return respond(request, response, { status: 204, headers: { ...preflightHeaders } });
    }
    const rpc = rpcs.get(path);
    if (rpc !== undefined) void serveRpc(rpc, request, response);
    else void serveRoute(path, request, response);
  }

  async function serveRpc(rpc: RpcHandler, request: Request, response: Response): Promise<void> {
    try {
      const values = createContextValues()
        .set(cutKey, () => response.destroy())
        .set(certificateKey, () => certificateThumbprint(request.socket));
      const universal = universalRequestFromNodeRequest(request, response as ServerResponse, undefined, values);
      // The library would destroy the connection when it stops reading; the answer has to get out first.
      const body = request.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>;
      const answer = await rpc.handle({ ...universal, body });
      await universalResponseToNodeResponse(answer, response);
    } catch (thrown) {
      if (response.headersSent || response.destroyed || request.destroyed) response.destroy();
      else respond(request, response, errorResponse(thrown, rpc.method.path, emit));
    }
  }

  async function serveRoute(path: string, request: Request, response: Response): Promise<void> {
    const route = find(request.method ?? '', path);
    if (route === undefined) {
      return respond(request, response, plainError(404, 'not_found', `Nothing is served at ${path.slice(0, 200)}.`));
    }
    if (route === 'method_not_allowed') {
      return respond(request, response, plainError(405, 'unimplemented', 'Use another HTTP method here.'));
    }
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    try {
      const answer = await route.handler({
        method: request.method ?? '',
        path,
        query: new URLSearchParams(request.url?.split('?').slice(1).join('?') ?? ''),
        headers: request.headers,
        body: () => readBody(request, limits.maxMessageBytes),
        signal: AbortSignal.any([gone.signal, closing.signal]),
        remoteAddress: request.socket.remoteAddress,
      });
      respond(request, response, answer);
    } catch (thrown) {
      if (!response.headersSent && !response.destroyed)
        respond(request, response, errorResponse(thrown, route.path, emit));
      else response.destroy();
    }
  }

  let server: Server | Http2SecureServer | undefined;
  let sockets: Sockets | undefined;
  let tls: TlsSource | undefined;
  const http1 = {
    headersTimeout: limits.headersTimeoutMs,
    requestTimeout: limits.requestTimeoutMs,
    keepAliveTimeout: Math.min(limits.idleTimeoutMs, 65_000),
    connectionsCheckingInterval: Math.min(5_000, limits.headersTimeoutMs, limits.requestTimeoutMs),
    maxHeaderSize: 32_768,
  };

  return {
    async open() {
      if (listen.tls === undefined) {
        server = createServer(http1, onRequest);
      } else {
        let secure: Http2SecureServer | undefined;
        tls = await openTls({
          door: 'http',
          files: listen.tls,
          intervalMs: options.tlsReloadMs,
          apply: (pair) => secure?.setSecureContext(contextOf(pair)),
          emit,
        });
        server = secure = createSecureServer(
          {
            ...contextOf(tls.current()),
            ...clientCertificates(listen.tls),
            ...http1,
            allowHTTP1: true,
            handshakeTimeout: limits.headersTimeoutMs,
            settings: { maxConcurrentStreams: limits.maxStreamsPerConnection },
          },
          onRequest,
        );
        secure.on('session', (session) => session.setTimeout(limits.idleTimeoutMs, () => session.close()));
      }
      server.maxConnections = limits.maxConnections;
      sockets = trackSockets(server);
      const port = await listenOn(server, 'HTTP', listen);
      emit('door.opened', { door: 'http', host: listen.host, port, tls: tls !== undefined });
      return port;
    },
    reloadTls: async () => tls?.reload(),
    async close(waitMs) {
      tls?.close();
      closing.abort();
      if (server === undefined) return;
      const open = server;
      const closed = new Promise<void>((resolve) => open.close(() => resolve()));
      // A kept-alive connection becomes idle when its last answer is out.
      const idle = setInterval(() => 'closeIdleConnections' in open && open.closeIdleConnections(), 20);
      await sockets?.closeAll(waitMs);
      await closed;
      clearInterval(idle);
    },
  };
}

/** HTTP/1.1 has the server's own request time-out; HTTP/2 streams have none. */
function boundBody(request: Http2ServerRequest, timeoutMs: number): void {
  const timer = setTimeout(() => request.stream.close(constants.NGHTTP2_CANCEL), timeoutMs);
  const done = (): void => clearTimeout(timer);
  request.once('end', done);
  request.stream.once('close', done);
}

function respond(request: Request, response: Response, { status, headers = {}, body }: HttpResponse): void {
  if (response.destroyed) return;
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
  response.statusCode = status;
  if (body === undefined || typeof body === 'string' || body instanceof Uint8Array) {
    const bytes = typeof body === 'string' ? Buffer.from(body) : body;
    if (bytes !== undefined) response.setHeader('content-length', bytes.byteLength);
    if (bytes === undefined || request.method === 'HEAD') response.end();
    else response.end(bytes);
  } else if (request.method === 'HEAD') {
    response.end();
  } else {
    pipeline(Readable.from(body), response as ServerResponse).catch(() => response.destroy());
  }
}

async function readBody(request: Request, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += chunk.byteLength;
    if (size > maxBytes) throw new BrokerError('TOO_LARGE', `The body is larger than ${maxBytes} bytes.`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
