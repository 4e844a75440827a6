import type { Message } from '@bufbuild/protobuf';
import { toBinary } from '@bufbuild/protobuf';
import type { Metadata as MetadataType, ServerInterceptingCall, StatusObject } from '@grpc/grpc-js';
import { Metadata } from '@grpc/grpc-js';
import { constants } from 'node:http2';
import type { ServerHttp2Stream } from 'node:http2';
import type { Chain } from '../api/chain/chain.ts';
import { exceeded } from '../api/chain/deadline.ts';
import type { Method } from '../api/chain/describe.ts';
import type { Door, Exchange, Incoming } from '../api/chain/exchange.ts';
import { Cancelled } from '../api/chain/exchange.ts';
import { decodeBinary } from '../api/chain/request.ts';
import { codeNumber, libraryError, statusBytes, wireMessage } from '../api/chain/status.ts';
import { BrokerError } from '../domain/errors.ts';
import { certificateThumbprint } from './tls.ts';
import { readTraceparent } from '../observability/trace.ts';

/** What the library hands to an interceptor: the call, below its own handler layer. */
export type LibraryCall = Pick<
  ServerInterceptingCall,
  'start' | 'sendMessage' | 'sendStatus' | 'startRead' | 'getDeadline'
>;
type Status = Parameters<LibraryCall['sendStatus']>[0];

const ok: Status = { code: 0, details: 'OK', metadata: null };
const nothing = (): void => undefined;
/** google.rpc.Code INTERNAL: what the library answers when it cannot read a request. */
const internal = 13;
const deadlineExceeded = 4;

/**
 * One gRPC call between the library and the chain. It stands directly on the library's call, in place of the library's
 * handler objects: per call that saves an emitter and its closures, and it gives each message's own write callback, which
 * is the stream's backpressure.
 */
export class GrpcCall implements Door {
  readonly #call: LibraryCall;
  readonly #sendStatus: LibraryCall['sendStatus'];
  readonly #chain: Chain;
  readonly #method: Method;
  readonly #maxBytes: number;
  readonly #receiving: Set<GrpcCall>;
  readonly receivingSince: number;
  #metadata: MetadataType | undefined;
  #body: Buffer | undefined;
  #exchange: Exchange | undefined;
  #answered = false;

  constructor(call: LibraryCall, method: Method, chain: Chain, maxBytes: number, receiving: Set<GrpcCall>) {
    this.#call = call;
    this.#method = method;
    this.#chain = chain;
    this.#maxBytes = maxBytes;
    this.#receiving = receiving;
    this.receivingSince = performance.now();
    this.#sendStatus = call.sendStatus;
    // So that nobody has more buffered than the method may take; the library has one bound for all. Should it keep its
    // decoder elsewhere one day, the check below still holds.
    const { decoder } = call as { decoder?: { maxReadMessageLength?: number } };
    if (decoder?.maxReadMessageLength !== undefined) decoder.maxReadMessageLength = maxBytes;
    // What the library refuses by itself (size, compression, time-out header, deadline) has to look like our refusals.
    call.sendStatus = (status) => this.#libraryStatus(status);
  }

  /** The library's listener. */
  onReceiveMetadata(metadata: MetadataType): void {
    this.#metadata = metadata;
    this.#receiving.add(this);
    this.#call.startRead();
  }

  onReceiveMessage(body: Buffer): void {
    if (this.#body !== undefined) {
      this.#reject(new BrokerError('FIELD_INVALID', `${this.#method.desc.name} takes one request message.`));
      return;
    }
    if (body.byteLength > this.#maxBytes) {
      this.#reject(new BrokerError('TOO_LARGE', `The request is larger than ${this.#maxBytes} bytes.`));
      return;
    }
    this.#body = body;
    this.#call.startRead();
  }

  onReceiveHalfClose(): void {
    if (this.#answered) return;
    this.#receiving.delete(this);
    if (this.#body === undefined) {
      this.#reject(new BrokerError('FIELD_INVALID', 'The call carries no request message.'));
    } else if (this.#method.kind === 'unary') {
      this.#exchange = this.#chain.unary(this.#incoming(), this);
    } else {
      const { exchange, messages } = this.#chain.stream(this.#incoming(), this);
      this.#exchange = exchange;
      void this.#pump(exchange, messages);
    }
  }

  /** Also called when the call has ended well; the chain knows. */
  onCancel(): void {
    this.#receiving.delete(this);
    if (this.#exchange !== undefined) this.#chain.cancel(this.#exchange);
  }

  /** The request did not arrive in time. */
  expire(): void {
    this.#reject(exceeded());
  }

  encode(message: Message): Buffer {
    const bytes = toBinary(this.#method.output, message);
    if (bytes.byteLength > this.#maxBytes) {
      throw new BrokerError('TOO_LARGE', `The answer is larger than ${this.#maxBytes} bytes. Ask for less of it.`);
    }
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  reply(error: BrokerError | undefined, payload: unknown): void {
    if (error !== undefined) return this.#answer(statusOf(error));
    this.#call.sendMessage(payload, nothing);
    this.#answer(ok);
  }

  cut(): void {
    // Trailers would queue behind the data that is not read. The library keeps the stream to itself, and has no reset.
    const { stream } = this.#call as { stream?: ServerHttp2Stream };
    this.#answered = true;
    stream?.close(constants.NGHTTP2_CANCEL);
  }

  async #pump(exchange: Exchange, messages: AsyncIterable<Message>): Promise<void> {
    try {
      for await (const message of messages) {
        const payload = this.#encodeOrFail(exchange, message);
        await exchange.untilEnded<void>((resolve) => {
          if (exchange.ending === undefined) this.#call.sendMessage(payload, resolve);
        });
      }
      this.#answer(ok);
    } catch (thrown) {
      if (thrown instanceof BrokerError) this.#answer(statusOf(thrown));
      else if (!(thrown instanceof Cancelled)) this.cut();
    }
  }

  #encodeOrFail(exchange: Exchange, message: Message): Buffer {
    try {
      return this.encode(message);
    } catch (thrown) {
      this.#chain.fail(exchange, thrown);
      throw exchange.ending instanceof BrokerError ? exchange.ending : new Cancelled('the call has ended');
    }
  }

  #incoming(): Incoming {
    const metadata = this.#metadata!;
    const deadline = this.#call.getDeadline();
    return {
      method: this.#method,
      door: 'grpc',
      authorization: header(metadata, 'authorization'),
      timeoutMs: deadline === Infinity ? undefined : Number(deadline) - Date.now(),
      traceparent: readTraceparent(header(metadata, 'traceparent')),
      clientCertificate: () => {
        // The library keeps the stream to itself.
        const { stream } = this.#call as { stream?: ServerHttp2Stream };
        return certificateThumbprint(stream?.session?.socket);
      },
      decode: () => decodeBinary(this.#method, this.#body!),
    };
  }

  #reject(error: BrokerError): void {
    if (this.#answered) return;
    this.#receiving.delete(this);
    this.#chain.reject({ ...this.#incoming(), authorization: undefined }, this, error);
  }

  #libraryStatus(status: Status): void {
    if (this.#answered) return;
    const code = status.code ?? internal;
    if (code === deadlineExceeded && this.#exchange !== undefined) {
      this.#chain.refuse(this.#exchange, exceeded());
      return;
    }
    const details = status.details ?? '';
    const error =
      code === internal && this.#exchange === undefined
        ? new BrokerError('FIELD_INVALID', `The request cannot be read: ${details}.`)
        : code === deadlineExceeded
          ? exceeded()
          : libraryError(code, details);
    if (error === undefined || this.#exchange !== undefined || this.#metadata === undefined) this.#answer(status);
    else this.#reject(error);
  }

  #answer(status: Status): void {
    if (this.#answered) return;
    this.#answered = true;
    this.#sendStatus.call(this.#call, status);
  }
}

export function statusOf(error: BrokerError): StatusObject {
  const metadata = new Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from(statusBytes(error)));
  return { code: codeNumber[error.code], details: wireMessage(error), metadata };
}

/** A header that is given twice says nothing certain; an unreadable value refuses the call where it matters. */
function header(metadata: MetadataType, name: string): string | undefined {
  const values = metadata.get(name);
  return values.length === 0 ? undefined : values.join(', ');
}
