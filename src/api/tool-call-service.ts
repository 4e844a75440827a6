import type { MessageInitShape } from '@bufbuild/protobuf';
import type { Caller } from '../domain/caller.ts';
import type { SentArguments } from '../domain/calls/call-arguments.ts';
import type { CallEndRequest, CallOver, CallRequest, ToolCalls } from '../domain/calls/calls.ts';
import { canonicalJson } from '../domain/calls/canonical-json.ts';
import type { ToolCall } from '../domain/calls/model.ts';
import { BrokerError, fieldInvalid } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';
import { Tier } from '../gen/leasehold/v1/common_pb.js';
import { ErrorReason } from '../gen/leasehold/v1/errors_pb.js';
import {
  ToolCallService,
  type BeginToolCallRequest,
  type EndToolCallRequest,
  type RecordToolCallRequest,
  type ToolCallResultSchema,
} from '../gen/leasehold/v1/tool_call_service_pb.js';
import { service } from './call.ts';
import { instantOf, tierOf } from './convert.ts';
import { callIdField, leaseIdField, name, nextPageToken, pageSize, pageToken, taskIdField, text } from './fields.ts';
import { callMessage, endOf } from './tool-call-convert.ts';

export interface ToolCallServiceOptions {
  /** Lower-case hex. */
  sha256: (text: string) => string;
  newRequestId: () => string;
  /** Cuts out of free text what looks like a secret. */
  redact: (text: string) => string;
}

const maxBatch = 100;
const actionPattern = /^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/;
const digestPattern = /^sha256:[0-9a-f]{64}$/;

export function toolCallService(calls: ToolCalls, options: ToolCallServiceOptions) {
  const { sha256, redact } = options;

  const digestOf = (method: string, content: unknown) =>
    sha256(
      JSON.stringify([method, content], (_key, value: unknown) => (typeof value === 'bigint' ? `${value}` : value)),
    );

  const requestOf = (request: BeginToolCallRequest, more: object = {}): CallRequest => {
    const args = argumentsOf(request);
    const fields = {
      taskId: taskIdField(request.taskId),
      leaseId: request.leaseId === '' ? undefined : leaseIdField(request.leaseId),
      tool: request.tool === '' ? undefined : name('tool', request.tool),
      tier: request.tier === Tier.UNSPECIFIED ? undefined : tierOf('tier', request.tier),
      action: matching('action', request.action, actionPattern, 'must be 1 to 128 of letters, digits and ._:/-'),
      aboutCallId: request.aboutCallId === '' ? undefined : callIdField('about_call_id', request.aboutCallId),
      peer: peerOf(request),
    };
    // Canonical, so that the same arguments in another order are the same request.
    const sent = args !== undefined && 'values' in args ? canonicalJson(args.values) : args?.digest;
    return {
      ...fields,
      arguments: args,
      requestId: request.requestId || options.newRequestId(),
      requestDigest: digestOf('call', { ...fields, sent, ...more }),
    };
  };

  const begin = (caller: Caller, request: BeginToolCallRequest) => calls.begin(caller, requestOf(request));

  const record = (caller: Caller, request: RecordToolCallRequest) => {
    if (request.call === undefined) throw fieldInvalid('call', 'is required: what was done');
    const over: CallOver = {
      end: endOf(request, redact),
      startedAt: instantOf(request.startTime),
      endedAt: instantOf(request.endTime),
    };
    return calls.record(caller, requestOf(request.call, over), over);
  };

  const end = (caller: Caller, request: EndToolCallRequest) => {
    const content = { callId: callIdField('call_id', request.callId), end: endOf(request, redact) };
    const ending: CallEndRequest = {
      ...content,
      requestId: request.requestId || options.newRequestId(),
      requestDigest: digestOf('end', content),
    };
    return calls.end(caller, ending);
  };

  return service(ToolCallService, {
    beginToolCall: async (request, { caller }) => ({ call: callMessage(await begin(caller, request)) }),
    endToolCall: async (request, { caller }) => ({ call: callMessage(await end(caller, request)) }),
    recordToolCall: async (request, { caller }) => ({ call: callMessage(await record(caller, request)) }),

    batchBeginToolCalls: (request, { caller }) => each(request.requests, (one) => begin(caller, one)),
    batchEndToolCalls: (request, { caller }) => each(request.requests, (one) => end(caller, one)),
    batchRecordToolCalls: (request, { caller }) => each(request.requests, (one) => record(caller, one)),

    getToolCall: async (request, { caller }) => ({
      call: callMessage(await calls.get(caller, callIdField('call_id', request.callId))),
    }),

    listToolCalls: async (request, { caller }) => {
      const page = await calls.list(caller, {
        taskId: request.taskId === '' ? undefined : taskIdField(request.taskId),
        agent: request.agent === '' ? undefined : name('agent', request.agent),
        tool: request.tool === '' ? undefined : name('tool', request.tool),
        since: instantOf(request.since),
        until: instantOf(request.until),
        violationsOnly: request.violationsOnly,
        pageSize: pageSize(request.pageSize, 100),
        after: pageToken(request.pageToken, (id) => isId('cal', id)),
      });
      return { calls: page.items.map(callMessage), nextPageToken: nextPageToken(page.next) };
    },
  });
}

/** All at once: what waits together is written together. */
async function each<T>(requests: readonly T[], work: (request: T) => Promise<ToolCall>) {
  if (requests.length === 0) throw fieldInvalid('requests', 'must have at least one entry');
  if (requests.length > maxBatch) throw fieldInvalid('requests', `must have at most ${maxBatch} entries`);
  const results = await Promise.all(
    requests.map(async (request): Promise<MessageInitShape<typeof ToolCallResultSchema>> => {
      try {
        return { result: { case: 'call', value: callMessage(await work(request)) } };
      } catch (error) {
        // A defect is one for the whole call: it gets its incident number.
        if (!(error instanceof BrokerError)) throw error;
        return { result: { case: 'error', value: { reason: ErrorReason[error.reason], message: error.message } } };
      }
    }),
  );
  return { results };
}

function argumentsOf(request: BeginToolCallRequest): SentArguments {
  if (request.argumentsDigest === '') return request.arguments && { values: request.arguments };
  if (request.arguments !== undefined)
    throw fieldInvalid('arguments_digest', 'give arguments or their digest, not both');
  const form = 'must be sha256: and 64 lower-case hexadecimal digits';
  return { digest: matching('arguments_digest', request.argumentsDigest, digestPattern, form) };
}

function peerOf({ peer }: BeginToolCallRequest): CallRequest['peer'] {
  if (peer === undefined || (peer.workload === '' && peer.address === '')) return undefined;
  return {
    workload: text('peer.workload', peer.workload, 0, 2_048),
    address: text('peer.address', peer.address, 0, 64),
  };
}

function matching(field: string, value: string, pattern: RegExp, description: string): string {
  if (!pattern.test(value)) throw fieldInvalid(field, description);
  return value;
}
