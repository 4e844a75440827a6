import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { fieldInvalid } from '../domain/errors.ts';
import type { DocumentChange } from '../domain/revision-diff.ts';
import type { Activation, RevisionRecord, Revisions } from '../domain/revisions.ts';
import { ChangeKind, PolicyService, RevisionSource } from '../gen/leasehold/v1/policy_service_pb.js';
import type { Caller } from '../domain/caller.ts';
import { service } from './call.ts';
import { decisionHandlers, type DecisionOptions } from './decision-handlers.ts';
import { nextPageToken, pageSize, pageToken } from './fields.ts';

export interface PolicyServiceOptions extends DecisionOptions {
  revisions: Revisions;
  newRequestId: () => string;
}

const sources = {
  directory: RevisionSource.DIRECTORY,
  git: RevisionSource.GIT,
  api: RevisionSource.API,
  rollback: RevisionSource.ROLLBACK,
} as const;

const changes = { added: ChangeKind.ADDED, removed: ChangeKind.REMOVED, changed: ChangeKind.CHANGED } as const;

export function policyService(options: PolicyServiceOptions) {
  const { revisions } = options;
  return service(PolicyService, {
    applyPolicy: async (request, { caller }) => {
      const applied = await revisions.apply(caller, {
        requestId: request.requestId === '' ? options.newRequestId() : request.requestId,
        files: request.files.map(({ path, content }, index) => ({
          file: filePath(`files[${index}].path`, path),
          text: utf8(`files[${index}].content`, content),
        })),
        message: request.message,
        dryRun: request.dryRun,
        reevaluate: request.reevaluate,
        expected: request.expectedRevision,
      });
      return {
        revision: revisionMessage(caller, applied.revision),
        changes: applied.changes.map(changeMessage),
        activated: applied.activated,
        wouldEnd: BigInt(applied.preview?.ended ?? 0),
        lookedAt: BigInt(applied.preview?.decided ?? 0),
      };
    },

    rollbackPolicy: async (request, { caller }) => {
      const { requestId, digest, message, reevaluate } = request;
      const result = await revisions.rollback(caller, {
        requestId: requestId === '' ? options.newRequestId() : requestId,
        digest,
        message,
        reevaluate,
      });
      return { revision: revisionMessage(caller, result.revision), changes: result.changes.map(changeMessage) };
    },

    listActivations: async (request, { caller }) => {
      const after = pageToken(request.pageToken, (id) => /^[1-9][0-9]{0,14}$/.test(id));
      const page = await revisions.activations(caller, pageSize(request.pageSize, 50), after);
      return { activations: page.items.map(activationMessage), nextPageToken: nextPageToken(page.next) };
    },

    listRevisions: async (request, { caller }) => {
      const after = pageToken(request.pageToken, (id) => /^[0-9]{1,15} sha256:[0-9a-f]{64}$/.test(id));
      const page = await revisions.revisions(caller, pageSize(request.pageSize, 50), after);
      return {
        revisions: page.items.map((revision) => revisionMessage(caller, revision)),
        nextPageToken: nextPageToken(page.next),
      };
    },

    getRevision: async (request, { caller }) => {
      const { revision, documents } = await revisions.get(caller, request.digest);
      return { revision: revisionMessage(caller, revision), documents };
    },

    diffRevisions: async (request, { caller }) => {
      const diff = await revisions.diff(caller, request.from, request.to);
      return { ...diff, changes: diff.changes.map(changeMessage) };
    },

    ...decisionHandlers(options),
  });

  function revisionMessage(caller: Caller, revision: RevisionRecord) {
    return {
      digest: revision.digest,
      createTime: timestampFromMs(revision.createdAt),
      creator: revision.creator,
      source: sources[revision.source],
      message: revision.message,
      active: revision.digest === revisions.active(caller),
    };
  }
}

function activationMessage(activation: Activation) {
  const { reevaluation } = activation;
  return {
    activationId: BigInt(activation.activationId),
    digest: activation.digest,
    activateTime: timestampFromMs(activation.activatedAt),
    actor: activation.actor,
    source: sources[activation.source],
    message: activation.message,
    ...(reevaluation === undefined
      ? {}
      : {
          reevaluation: {
            decided: BigInt(reevaluation.decided),
            ended: BigInt(reevaluation.ended),
            ...(reevaluation.finishedAt === undefined ? {} : { finishTime: timestampFromMs(reevaluation.finishedAt) }),
          },
        }),
  };
}

function changeMessage(change: DocumentChange) {
  return { ...change, change: changes[change.change] };
}

/** Only ever shown, never opened; held to what a terminal and a log can show. */
function filePath(field: string, value: string): string {
  if (!/^[^\p{C}\\]{1,256}$/u.test(value) || value.startsWith('/')) {
    throw fieldInvalid(field, 'must be a relative path of at most 256 printable characters');
  }
  return value;
}

function utf8(field: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw fieldInvalid(field, 'must be UTF-8 text');
  }
}
