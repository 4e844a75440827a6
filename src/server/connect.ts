import type { DescMethodServerStreaming, DescMethodUnary, Message } from '@bufbuild/protobuf';
import { toBinary, toJson } from '@bufbuild/protobuf';
import type { HandlerContext } from '@connectrpc/connect';
import { Code, ConnectError, createConnectRouter, createContextKey } from '@connectrpc/connect';
import type { UniversalHandler, UniversalServerRequest, UniversalServerResponse } from '@connectrpc/connect/protocol';
import type { Chain } from '../api/chain/chain.ts';
import { exceeded } from '../api/chain/deadline.ts';
import type { Method } from '../api/chain/describe.ts';
import type { Door, Exchange, Incoming } from '../api/chain/exchange.ts';
import { codeNumber, errorDetails, libraryError, wireMessage } from '../api/chain/status.ts';
import { BrokerError } from '../domain/errors.ts';
import type { ErrorCode } from '../domain/errors.ts';
import { readTraceparent } from '../observability/trace.ts';
import { checkBody, checkQuery, strictJson } from './http-request.ts';
import { bearerToken } from '../api/chain/identity.ts';

/** How a call reaches its connection: to drop it when its reader does not read. */
export const cutKey = createContextKey<() => void>(() => undefined, { description: 'drops the response' });

/** Thumbprint of the client certificate of its connection. */
export const certificateKey = createContextKey<() => string | undefined>(() => undefined, {
  description: 'client certificate',
});

/** Longer delays overflow the timers of the runtime and would fire at once. */
const maxTimeoutMs = 2_147_483_647;

export interface RpcHandler {
  method: Method;
  handle: (request: UniversalServerRequest) => Promise<UniversalServerResponse>;
}

/** Connect (binary, JSON, GET for reads) and gRPC-Web for every method, through the one chain. Keyed by path. */
export function connectHandlers(chain: Chain, maxMessageBytes: number): Map<string, RpcHandler> {
  const router = createConnectRouter({
    // gRPC has a door of its own.
    grpc: false,
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
    maxTimeoutMs,
    jsonOptions: strictJson,
  });
  const bytesOf = (method: Method) => Math.max(maxMessageBytes, method.maxMessageBytes);
  for (const method of chain.methods) {
    const bounds = { readMaxBytes: bytesOf(method), writeMaxBytes: bytesOf(method) };
    if (method.kind === 'unary') {
      router.rpc(method.desc as DescMethodUnary, (request, context) => unary(chain, method, request, context), bounds);
    } else {
      router.rpc(
        method.desc as DescMethodServerStreaming,
        (request, context) => stream(chain, method, request, context),
        bounds,
      );
    }
  }
  const byPath = new Map(chain.methods.map((method) => [method.path, method]));
  return new Map(
    router.handlers.map((handler) => {
      const method = byPath.get(handler.requestPath)!;
      return [
        handler.requestPath,
        { method, handle: (request) => serve(chain, method, handler, request, bytesOf(method)) },
      ];
    }),
  );
}

async function serve(
  chain: Chain,
  method: Method,
  handler: UniversalHandler,
  request: UniversalServerRequest,
  maxMessageBytes: number,
): Promise<UniversalServerResponse> {
  const refused = (thrown: unknown): BrokerError => {
    if (!(thrown instanceof BrokerError)) throw thrown;
    chain.reject(beforeChain(method, request), silent, thrown);
    return thrown;
  };
  if (request.method === 'GET') {
    try {
      bearerToken(request.header.get('authorization') ?? undefined);
      checkQuery(method, new URL(request.url).searchParams);
    } catch (thrown) {
      const error = refused(thrown);
      return withJson(error.code === 'unauthenticated' ? 401 : 400, new Headers(), {
        code: error.code,
        message: wireMessage(error),
        details: jsonDetails(error),
      });
    }
    return completeResponse(await handler(request));
  }
  // Thrown from the body, so that the library puts it into the form of the caller's protocol.
  async function* checked(): AsyncIterable<Uint8Array> {
    let body: Buffer;
    try {
      bearerToken(request.header.get('authorization') ?? undefined);
      body = await readAll(request.body as AsyncIterable<Uint8Array>, maxMessageBytes);
      checkBody(method, request.header.get('content-type') ?? '', body);
    } catch (thrown) {
      throw connectError(refused(thrown));
    }
    yield body;
  }
  return completeResponse(await handler({ ...request, body: checked() }));
}

/** The frame of an enveloped message comes on top. */
const envelopeHead = 5;

async function readAll(body: AsyncIterable<Uint8Array>, maxBytes: number): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body) {
    size += chunk.byteLength;
    if (size > maxBytes + envelopeHead) {
      throw new BrokerError('TOO_LARGE', `The request is larger than ${maxBytes} bytes.`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

const silent: Door = { encode: () => undefined, reply: () => undefined, cut: () => undefined };

function beforeChain(method: Method, request: UniversalServerRequest): Incoming {
  return {
    method,
    door: 'http',
    authorization: undefined,
    timeoutMs: undefined,
    traceparent: readTraceparent(request.header.get('traceparent')),
    clientCertificate: () => undefined,
    decode: () => {
      throw new Error('never parsed');
    },
  };
}

function unary(chain: Chain, method: Method, request: Message, context: HandlerContext): Promise<Message> {
  return new Promise<Message>((resolve, reject) => {
    const exchange = chain.unary(incoming(method, request, context), {
      encode: (message) => message,
      reply: (error, message) => (error === undefined ? resolve(message as Message) : reject(connectError(error))),
      cut: context.values.get(cutKey),
    });
    onAbort(chain, exchange, context.signal, () => reject(new ConnectError('canceled', Code.Canceled)));
  });
}

async function* stream(chain: Chain, method: Method, request: Message, context: HandlerContext) {
  const door: Door = { encode: (message) => message, reply: () => undefined, cut: context.values.get(cutKey) };
  const { exchange, messages } = chain.stream(incoming(method, request, context), door);
  onAbort(chain, exchange, context.signal, () => undefined);
  try {
    yield* messages;
  } catch (thrown) {
    throw thrown instanceof BrokerError ? connectError(thrown) : new ConnectError('canceled', Code.Canceled);
  }
}

function incoming(method: Method, request: Message, context: HandlerContext): Incoming {
  return {
    method,
    door: 'http',
    authorization: context.requestHeader.get('authorization') ?? undefined,
    timeoutMs: context.timeoutMs(),
    traceparent: readTraceparent(context.requestHeader.get('traceparent')),
    clientCertificate: context.values.get(certificateKey),
    decode: () => request,
  };
}

function onAbort(chain: Chain, exchange: Exchange, signal: AbortSignal, cancelled: () => void): void {
  const abort = (): void => {
    const { reason } = signal as { reason: unknown };
    if (reason instanceof ConnectError && reason.code === Code.DeadlineExceeded) {
      chain.refuse(exchange, exceeded());
    } else {
      chain.cancel(exchange);
      cancelled();
    }
  };
  if (signal.aborted) abort();
  else signal.addEventListener('abort', abort, { once: true });
}

function connectError(error: BrokerError): ConnectError {
  const details = errorDetails(error).map(({ desc, value }) => ({ desc, value }));
  return new ConnectError(wireMessage(error), codeNumber[error.code] as Code, undefined, details);
}

/**
 * What the library refuses before the chain is reached (bytes or JSON that it cannot parse, size, an unknown media type)
 * gets the details and the JSON body that all other refusals have.
 */
async function completeResponse(response: UniversalServerResponse): Promise<UniversalServerResponse> {
  if (response.status < 400) return response;
  const header = new Headers(response.header);
  if (response.status === 401) header.set('www-authenticate', 'Bearer');
  if (response.body === undefined) return withJson(response.status, header, statusOnly(response.status));
  if (header.get('content-type') !== 'application/json') return { ...response, header };

  const chunks: Uint8Array[] = [];
  for await (const chunk of response.body) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const body = JSON.parse(bytes.toString()) as { code: string; message?: string; details?: unknown[] };
  if (body.details === undefined) {
    const error = libraryError(codeNumber[body.code as ErrorCode] ?? 0, body.message ?? '');
    if (error !== undefined) return withJson(response.status, header, { ...body, details: jsonDetails(error) });
  }
  return { ...response, header, body: once(bytes) };
}

function jsonDetails(error: BrokerError): unknown[] {
  return errorDetails(error).map(({ desc, value }) => ({
    type: desc.typeName,
    value: Buffer.from(toBinary(desc, value)).toString('base64').replace(/=+$/, ''),
    debug: toJson(desc, value),
  }));
}

function statusOnly(status: number): { code: string; message: string } {
  if (status === 415) return { code: 'unknown', message: 'Send application/json or application/proto.' };
  if (status === 405) return { code: 'unimplemented', message: 'Call this method with POST.' };
  return { code: 'unknown', message: `HTTP ${status}` };
}

function withJson(status: number, header: Headers, value: unknown): UniversalServerResponse {
  const bytes = Buffer.from(JSON.stringify(value));
  header.set('content-type', 'application/json');
  header.set('content-length', String(bytes.byteLength));
  return { status, header, body: once(bytes) };
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}
