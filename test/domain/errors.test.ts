import { expect, test } from 'vitest';
import { errorReasons } from '../../src/domain/errors.ts';
import { ErrorReasonSchema } from '../../src/gen/leasehold/v1/errors_pb.js';

test('the reasons that the broker gives are those of the contract', () => {
  const contract = ErrorReasonSchema.values.map((value) => value.name.replace('ERROR_REASON_', ''));
  expect([...errorReasons].sort()).toEqual(contract.filter((name) => name !== 'UNSPECIFIED').sort());
});
