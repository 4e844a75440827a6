import type { Message } from '@bufbuild/protobuf';
import { fromBinary } from '@bufbuild/protobuf';
import { BrokerError } from '../../domain/errors.ts';
import type { Method } from './describe.ts';
import type { Interceptor } from './interceptor.ts';

/** Parses and checks the request, only now that the caller is known and may call. */
export const request: Interceptor =
  ({ validate }, next) =>
  (exchange) => {
    const message = exchange.incoming.decode();
    validate(message);
    exchange.request = message;
    return next(exchange);
  };

/** Unknown fields are dropped: a newer client may say more than this broker knows. */
const readOptions = { readUnknownFields: false };

export function decodeBinary({ input }: Method, bytes: Uint8Array): Message {
  try {
    return fromBinary(input, bytes, readOptions);
  } catch (cause) {
    throw new BrokerError('FIELD_INVALID', `The request is not a well-formed ${input.typeName}.`, { cause });
  }
}
