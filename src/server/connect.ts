import type { DescMethodServerStreaming, DescMethodUnary, Message } from '@bufbuild/protobuf';
import { toBinary, toJson } from '@bufbuild/protobuf';
import type { HandlerContext } from '@connectrpc/connect';
import { Code, ConnectError, createConnectRouter, createContextKey } from '@connectrpc/connect';
import type { UniversalHandler, UniversalServerResponse } from '@connectrpc/connect/protocol';
import type { Chain } from '../api/chain/chain.ts';
import { exceeded } from '../api/chain/deadline.ts';
import type { Method } from '../api/chain/describe.ts';
import type { Door, Exchange, Incoming } from '../api/chain/exchange.ts';
import { codeNumber, errorDetails, libraryError, wireMessage } from '../api/chain/status.ts';
import { BrokerError } from '../domain/errors.ts';
import type { ErrorCode } from '../domain/errors.ts';
import { readTraceparent } from '../observability/trace.ts';

/** How a call reaches its connection: to drop it when its reader does not read. */
export const cutKey = createContextKey<() => void>(() => undefined, { description: 'drops the response' });

/** Longer delays overflow the timers of the runtime and would fire at once. */
const maxTimeoutMs = 2_147_483_647;

/** Connect (binary, JSON, GET for reads) and gRPC-Web for every method, through the one chain. Keyed by path. */
export function connectHandlers(chain: Chain, maxMessageBytes: number): Map<string, UniversalHandler> {
  const router = createConnectRouter({
    // gRPC has a door of its own.
    grpc: false,
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
    maxTimeoutMs,
    // A misspelt field or enum value in JSON must not silently mean "not given".
    jsonOptions: { ignoreUnknownFields: false },
  });
  for (const method of chain.methods) {
    if (method.kind === 'unary') {
      router.rpc(method.desc as DescMethodUnary, (request, context) => unary(chain, method, request, context));
    } else {
      router.rpc(method.desc as DescMethodServerStreaming, (request, context) =>
        stream(chain, method, request, context),
      );
    }
  }
  return new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
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
export async function completeResponse(response: UniversalServerResponse): Promise<UniversalServerResponse> {
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
    const message = body.message ?? '';
    const error = withField(libraryError(codeNumber[body.code as ErrorCode] ?? 0, message), message);
    if (error !== undefined) return withJson(response.status, header, { ...body, details: jsonDetails(error) });
  }
  return { ...response, header, body: once(bytes) };
}

/** The parser names the field in its message; BadRequest names it where programs look. */
function withField(error: BrokerError | undefined, message: string): BrokerError | undefined {
  const field = /cannot decode field [\w.]*?(\w+) from JSON/.exec(message)?.[1] ?? /key "(\w+)"/.exec(message)?.[1];
  if (error?.reason !== 'FIELD_INVALID' || field === undefined) return error;
  return new BrokerError('FIELD_INVALID', error.message, { violations: [{ field, description: message }] });
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
