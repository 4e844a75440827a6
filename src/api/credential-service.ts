import { createHash } from 'node:crypto';
import { argumentsDigest, boundedArguments, noArguments, type DeclaredArguments } from '../domain/arguments.ts';
import type { Credentials } from '../domain/credentials.ts';
import type { IssueRequest } from '../domain/issue.ts';
import type { KeyBinding } from '../domain/model.ts';
import { CredentialService, type IssueCredentialRequest } from '../gen/leasehold/v1/credential_service_pb.js';
import { service } from './call.ts';
import { credentialMessage, leaseMessage, tierOf } from './convert.ts';
import { approvalIdField, leaseIdField, name, taskIdField, text } from './fields.ts';

/** The key of a request's proof; a request without one costs nothing. */
type TakeProof = (method: string, requestId: string, proof: string) => Promise<KeyBinding>;

const methods = CredentialService.method;

export function credentialService(credentials: Credentials, newRequestId: () => string, takeProof: TakeProof) {
  const proved = (method: { name: string }, requestId: string, proof: string) =>
    takeProof(`${CredentialService.typeName}/${method.name}`, requestId, proof);

  const issueRequest = (
    request: Pick<
      IssueCredentialRequest,
      'requestId' | 'taskId' | 'tool' | 'tier' | 'justification' | 'arguments' | 'approval'
    >,
  ) => ({
    requestId: request.requestId || newRequestId(),
    taskId: taskIdField(request.taskId),
    access: { tool: name('tool', request.tool), tier: tierOf('tier', request.tier) },
    justification: text('justification', request.justification, 0, 2_000),
    arguments: declared(request.arguments),
    approval: request.approval === '' ? undefined : approvalIdField('approval', request.approval),
  });

  return service(CredentialService, {
    issueCredential: async (request, { caller }) => {
      const asked: IssueRequest = issueRequest(request);
      if (request.dpopProof !== '') {
        asked.binding = await proved(methods.issueCredential, asked.requestId, request.dpopProof);
      }
      return { credential: credentialMessage(await credentials.issue(caller, asked)) };
    },

    renewCredential: async (request, { caller }) => {
      const requestId = request.requestId || newRequestId();
      const leaseId = leaseIdField(request.leaseId);
      const { dpopProof } = request;
      const key = dpopProof === '' ? undefined : await proved(methods.renewCredential, requestId, dpopProof);
      return { credential: credentialMessage(await credentials.renew(caller, leaseId, requestId, key)) };
    },

    returnCredential: async (request, { caller }) => ({
      lease: leaseMessage(await credentials.giveBack(caller, leaseIdField(request.leaseId))),
    }),

    streamCredential: async function* (request, { caller, signal }) {
      const asked: IssueRequest = issueRequest(request);
      if (request.dpopProof !== '') {
        asked.binding = await proved(methods.streamCredential, asked.requestId, request.dpopProof);
      }
      for await (const issued of credentials.stream(caller, asked, signal)) {
        yield { credential: credentialMessage(issued) };
      }
    },
  });
}

/** A request without arguments is one with none. */
function declared(sent: Readonly<Record<string, unknown>> | undefined): DeclaredArguments {
  if (sent === undefined || Object.keys(sent).length === 0) return noArguments;
  const values = boundedArguments(sent);
  return { values, digest: argumentsDigest(values, (text) => createHash('sha256').update(text).digest('hex')) };
}
