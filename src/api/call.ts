import type {
  DescMethod,
  DescMethodServerStreaming,
  DescMethodUnary,
  DescService,
  Message,
  MessageInitShape,
  MessageShape,
} from '@bufbuild/protobuf';
import type { Caller } from '../domain/caller.ts';
import type { Instant } from '../domain/time.ts';

/** What a handler knows about the call besides its request. The chain (`src/api/chain`) has made all of it sure. */
export interface Call {
  readonly caller: Caller;
  /** Aborts when the caller goes away, when the deadline passes and when the broker stops. */
  readonly signal: AbortSignal;
  /** By the broker's clock. `Infinity` for a stream whose caller set none. */
  readonly deadline: Instant;
  readonly method: DescMethod;
  /** Thumbprint of the client certificate of the call's connection (RFC 8705 §3.1), when there is one. */
  readonly clientCertificate: () => string | undefined;
  /** W3C Trace Context §3.2, as received and well-formed; absent otherwise. */
  readonly traceparent?: string | undefined;
}

/**
 * Answers one RPC. The request has passed the generic bounds of the chain. The answer may be a finished message or its
 * plain initialiser; a finished message saves a copy.
 */
export type UnaryHandler<M extends DescMethod> =
  M extends DescMethodUnary<infer I, infer O>
    ? (request: MessageShape<I>, call: Call) => Promise<MessageInitShape<O>> | MessageInitShape<O>
    : never;

/** Yields the messages of one stream; it is not asked for the next one before the caller can take it. */
export type StreamHandler<M extends DescMethod> =
  M extends DescMethodServerStreaming<infer I, infer O>
    ? (request: MessageShape<I>, call: Call) => AsyncIterable<MessageInitShape<O>>
    : never;

/** One handler per RPC of the service, named as in the generated code; none may be left out. */
export type ServiceHandlers<S extends DescService> = {
  [K in keyof S['method']]: S['method'][K]['methodKind'] extends 'unary'
    ? UnaryHandler<S['method'][K]>
    : StreamHandler<S['method'][K]>;
};

export type AnyUnaryHandler = (request: Message, call: Call) => Promise<object> | object;
export type AnyStreamHandler = (request: Message, call: Call) => AsyncIterable<object>;

/** One service as the doors take it: descriptor and handlers, checked against each other by `service`. */
export interface Service {
  readonly desc: DescService;
  readonly handlers: Readonly<Record<string, AnyUnaryHandler | AnyStreamHandler>>;
}

/** Pairs a generated service with its handlers. The doors take an array of these. */
export function service<S extends DescService>(desc: S, handlers: ServiceHandlers<S>): Service {
  return { desc, handlers: handlers as Service['handlers'] };
}
