import type { DescMessage, Message, MessageInitShape } from '@bufbuild/protobuf';
import { create, toBinary } from '@bufbuild/protobuf';
import { AnySchema, DurationSchema } from '@bufbuild/protobuf/wkt';
import { BrokerError } from '../../domain/errors.ts';
import type { ErrorCode, ErrorReason } from '../../domain/errors.ts';
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from '../../gen/google/rpc/error_details_pb.js';
import { StatusSchema } from '../../gen/google/rpc/status_pb.js';

/** How a refusal looks on the wire: google.rpc.Status with its details (AIP-193), the same for every door. */

export const errorDomain = 'leasehold.dev';

/** google.rpc.Code. */
export const codeNumber: Readonly<Record<ErrorCode, number>> = {
  invalid_argument: 3,
  deadline_exceeded: 4,
  not_found: 5,
  already_exists: 6,
  permission_denied: 7,
  resource_exhausted: 8,
  failed_precondition: 9,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
  unauthenticated: 16,
};

/** What travels in headers and trailers has to fit what clients accept there. */
const maxMessage = 1_024;
const maxDescription = 256;
const maxViolations = 16;
const maxMetadata = 16;

export interface ErrorDetail {
  desc: DescMessage;
  value: Message;
}

export function wireMessage(error: BrokerError): string {
  return bound(error.message, maxMessage);
}

export function errorDetails(error: BrokerError): ErrorDetail[] {
  const metadata = Object.fromEntries(
    Object.entries(error.metadata)
      .slice(0, maxMetadata)
      .map(([name, value]) => [name, bound(value, maxDescription)]),
  );
  const details = [detail(ErrorInfoSchema, { reason: error.reason, domain: errorDomain, metadata })];
  if (error.violations.length > 0) {
    const fieldViolations = error.violations.slice(0, maxViolations).map(({ field, description }) => ({
      field: bound(field, maxDescription),
      description: bound(description, maxDescription),
    }));
    details.push(detail(BadRequestSchema, { fieldViolations }));
  }
  if (error.retryAfterMs !== undefined) {
    details.push(detail(RetryInfoSchema, { retryDelay: duration(error.retryAfterMs) }));
  }
  return details;
}

/** The value of the `grpc-status-details-bin` trailer. */
export function statusBytes(error: BrokerError): Uint8Array {
  return toBinary(
    StatusSchema,
    create(StatusSchema, {
      code: codeNumber[error.code],
      message: wireMessage(error),
      details: errorDetails(error).map(({ desc, value }) =>
        create(AnySchema, { typeUrl: `type.googleapis.com/${desc.typeName}`, value: toBinary(desc, value) }),
      ),
    }),
  );
}

/**
 * A refusal that a door's library made by itself, before the chain saw the call, in our own words. `undefined` when the
 * number is none that a library gives.
 */
export function libraryError(code: number, description: string): BrokerError | undefined {
  const reason = libraryReasons[code];
  return reason === undefined ? undefined : new BrokerError(reason, bound(description, maxMessage));
}

const libraryReasons: Readonly<Partial<Record<number, ErrorReason>>> = {
  3: 'FIELD_INVALID',
  4: 'DEADLINE_EXCEEDED',
  8: 'TOO_LARGE',
  12: 'METHOD_UNKNOWN',
};

function detail<D extends DescMessage>(desc: D, init: MessageInitShape<D>): ErrorDetail {
  return { desc, value: create(desc, init) };
}

function duration(ms: number) {
  const whole = Math.max(0, Math.ceil(ms));
  return create(DurationSchema, { seconds: BigInt(Math.floor(whole / 1_000)), nanos: (whole % 1_000) * 1_000_000 });
}

/** Cut to size and to whole characters: half a surrogate pair cannot be encoded in a header. */
function bound(text: string, length: number): string {
  return (text.length > length ? `${text.slice(0, length - 1)}…` : text).toWellFormed();
}
